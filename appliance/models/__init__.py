"""Model files and what it takes to run them.

catalogue.py   the table of models: config.json                            gguf.py      what a file says of itself
folder.py      or a folder of files                                        differences.py  what a reload changes in it
estimate.py    the memory that a model will take                           command.py   the command line of a llama-server for it
check.py       all of that for people, without running anything            settings.py  the room's variables
schema.py      the JSON schema of the table, for editors                   views.py      what the manager tells of itself
"""
