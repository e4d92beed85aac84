"""Model files, and the llama-server processes that run them.

What is to be run
    catalogue.py   the table of models: config.json                            folder.py     or a folder of files
    gguf.py        what a file says of itself                                  differences.py   what a reload changes
    estimate.py    the memory that a model will take                           command.py    the command line of a llama-server for it
    check.py       all of that for people, without running anything            settings.py   the room's variables
    details.py     facts about a model, from its file's header                 library.py    gives them, and reads each file once
    digests.py     SHA-256 of the files, kept over restarts                    files.py      what a file says, put into its entry
    schema.py      the JSON schema of the table, for editors
What is fetched
    fetching.py   what a download is, and the promises of who does it      download_wish.py   what a caller asks for, read and checked
    jobs.py       who downloads what to where, over restarts               job.py, jobs_file.py   one of them as a value, and their file
    pulls.py      a name of Ollama's becomes a download and a model        pull_name.py   what such a name means; pulled.py   their index
What runs
    scheduler.py   what must happen next: decisions only                       manager.py    who waits; what an operator may do; reloads
    house.py       the values that it sees and says                            room.py       where a model fits, and who must leave for it
    turns.py       asking the scheduler, and doing what it says                entry.py      what is kept of models, servers, requests
    keeper.py      the life of each llama-server                               loading.py    how one comes to be ready, and goes
    process.py     one process                                                 learned.py    what loads teach: times and memory
    orphans.py     records of ours, and ending what outlived us                errors.py     the ways in which a model cannot be had
    watchdog.py    looks at what runs
What is fetched
    fetching.py    what a download is, in words                                download.py    the engine; its parts are download_*.py
    sources/       where files come from
What is told
    views.py       the values, and who is asked (ModelManagerApi)                        readings.py   the manager's answers
    vram.py        the memory where models lie, as the driver says it          system_memory.py   the same of the system's
    measures.py    the router_ metrics, and the report of the last five minutes
    status.py      the status objects of system D                              status_file.py   the same in a file
"""
