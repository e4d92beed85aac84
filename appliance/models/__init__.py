"""Models that run here: the table of models, and the llama-server processes that run them.

Modules:
    check: `appliance models check`, a report on the table without running anything.
    manager: the model manager, which uses all of the following.
    pull_name: the files that a name in Ollama's form, `hf.co/ns/repo:tag`, stands for.
    pulls: pulls a model by such a name: a download, then a row of the table.
    runner: one llama-server process, and the memory that it takes.
    scheduler: which model is loaded or unloaded, and when; decisions only.
    settings: the environment variables of this package.
    status: the manager's readings: values, status objects, status file, metrics.
    table: the table of models, and the facts in their files.
"""
