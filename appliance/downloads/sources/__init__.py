"""Where model files come from. A source lists its files and streams one of them from an offset; everything else is the engine's (download.py).

contract.py   what a source is, what it is given, how it fails       table.py   scheme → source
hf.py         Hugging Face, and what serves its API                  ms: modelscope.py
s3.py obs.py  object stores                                          pvc.py file.py   folders of this machine
https.py      one file from a web server
web.py, bucket.py, disk.py   what several of them stand on           reach.py   which hosts and folders may be read
hf_client.py  Hugging Face's own client, asking through our proxies
"""
