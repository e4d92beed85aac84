"""The model table and the model files: the models, the facts in their files, and their command lines.

Modules:
    catalogue: the models of this machine as they are to be run.
    catalogue_reader: reads them: the model table, a folder, and what was pulled.
    command: the command line of a llama-server for one model.
    details: facts about a model, from its header.
    differences: the changes of a reload, as sentences.
    digests: SHA-256 of model files, kept over restarts.
    engine: engines of any kind that a command of the table starts.
    entries: the sections of the table, as they stand in the file.
    estimate: the memory that a model will take.
    extra_args: what a table may add to the command line and the environment of a llama-server.
    file_state: a file's size and time of change.
    file_walk: all files of a folder that may be models.
    folder: a folder of files as a table.
    folder_watch: which whole files a folder has, whenever that changes.
    gguf: the header of a GGUF file.
    gguf_files: the files of one GGUF model.
    gguf_tables: tables of the GGUF format.
    groups: which models are loaded together, and which never.
    hooks: commands that are run before a model is loaded and after it was unloaded.
    library: facts about models; reads each file once.
    pulled: the index of pulled models.
    sampling: the sampling parameters of a model, and what is changed in requests for it.
    schema: the JSON schema of the table, for editors.
    section: the base of the sections of the file, and what is said of an invalid key.
"""
