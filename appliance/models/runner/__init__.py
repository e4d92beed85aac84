"""One process of an engine: its start, its memory, its stop, and processes that outlive the appliance.

Modules:
    failures: why an engine did not become ready.
    hooks: runs the commands before a load and after an unload.
    load_history: records of earlier loads, kept over restarts.
    loader: starts and stops engines: port, command line, process, record.
    log_file: the log of a llama-server.
    log_reader: the log of a llama-server, read for operators.
    orphans: records of started processes, and the end of those that outlived us.
    ports: which port is free, and which process listens on one.
    proc: facts about processes, from /proc.
    process: one process: started, probed until it is ready, stopped.
    program: the llama-server of this machine and its flags.
    runner: Runner, the state of one llama-server.
    system_memory: system memory as a device for models.
    vram: the memory that models are loaded into: GPUs by NVML, or system memory.
"""
