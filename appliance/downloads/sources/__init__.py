"""Where model files come from.

A source lists its files, and streams one of them from an offset. The engine does everything else.

Modules:
    bucket: object stores that speak S3's protocol; the base of s3 and obs.
    contract: what a source is, what it is given, how it fails.
    disk: folders of this machine; the base of pvc and file.
    file: file://, a file or folder of this machine.
    hf: hf://, Hugging Face and servers with the same API.
    hf_client: Hugging Face's own client, through our proxies.
    https: https://, one file from a web server.
    modelscope: ms://, ModelScope.
    obs: obs://, Huawei's object store.
    pvc: pvc://, a mounted folder.
    s3: s3://, Amazon's object store and others.
    table: scheme → source.
    web: HTTP for the sources that speak it.
"""
