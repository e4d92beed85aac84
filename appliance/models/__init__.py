"""Models that run here: the table of models, and the llama-server processes that run them.

Modules:
    check: `appliance models check`, a report on the table without running anything.
    manager: the model manager, which joins all of the following.
    pull_name: what a name of Ollama's registry means.
    pulls: a name of Ollama's becomes a download and a model of the table.
    runner: one llama-server process, and the memory that it takes.
    scheduler: which model is loaded, which is unloaded, and when; decisions only.
    settings: the environment variables of this package.
    status: what the manager shows of itself: values, status objects, status file, metrics.
    table: the table of models, and what their files say.
"""
