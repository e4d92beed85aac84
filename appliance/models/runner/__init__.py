"""One llama-server process: its start, its memory, its end, and what outlives us.

Modules:
    failures: why a llama-server did not become ready.
    load_history: what earlier loads showed, kept over restarts.
    loader: starts and stops llama-servers: port, command line, process, record.
    log_file: the log of a llama-server.
    orphans: records of started processes, and the end of those that outlived us.
    ports: which port is free, and who listens on one.
    proc: facts about processes, from /proc.
    process: one process: started, probed until it is ready, stopped.
    program: the llama-server of this machine and its flags.
    runner: Runner, one llama-server as the manager keeps it.
    system_memory: system memory as a device for models.
    vram: the memory that models are loaded into: GPUs by NVML, or system memory.
"""
