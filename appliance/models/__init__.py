"""Model files, and the llama-server processes that run them.

What is to be run
    catalogue.py   the table of models: config.json                            folder.py     or a folder of files
    gguf.py        what a file says of itself                                  differences.py   what a reload changes
    estimate.py    the memory that a model will take                           command.py    the command line of a llama-server for it
    check.py       all of that for people, without running anything            settings.py   the room's variables
    details.py     facts about a model, from its file's header                 library.py    gives them, and reads each file once
    digests.py     SHA-256 of the files, kept over restarts                    files.py      what a file says, put into its entry
    schema.py      the JSON schema of the table, for editors
What runs
    scheduler.py   what must happen next: decisions only                       manager.py    who waits, and doing what was decided
    keeper.py      the life of each llama-server                               entry.py      what is kept of models, servers, requests
    process.py     one process                                                 loading.py    how one comes to be ready, and goes
    orphans.py     records of ours, and ending what outlived us                learned.py    what loads teach: times and memory
    watchdog.py    looks at what runs                                          errors.py     the ways in which a model cannot be had
What is fetched
    fetching.py    what a download is, in words                                download.py    the engine; its parts are download_*.py
    sources/       where files come from
What is told
    views.py       the values, and who is asked (Board)                        readings.py   the manager's answers
    vram.py        the memory where models lie, as the driver says it          system_memory.py   the same of the system's
    measures.py    the router_ metrics, and the report of the last five minutes
    status.py      the status objects of system D                              status_file.py   the same in a file
"""
