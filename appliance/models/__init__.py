"""Model files and what it takes to run them.

catalogue.py   the table of models: config.json, or a folder of files      gguf.py      what a file says of itself
estimate.py    the memory that a model will take                           command.py   the command line of a llama-server for it
views.py       what the manager tells, and to whom          errors.py    why a model cannot answer
status.py      the status objects of system D               status_file.py  the same in a file
check.py       all of that for people, without running anything            settings.py  the room's variables
vram.py        the memory where models lie, as the driver says it         views.py     what the manager tells, and who is asked (Board)
system_memory.py   the same of the system's memory, and what a process takes of it
measures.py    the router_ metrics, and the report of the last five minutes
"""
