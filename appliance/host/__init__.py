"""The machine underneath: machine-id, GPU identity, the nvidia-smi shim, NAT, the worker.

Modules:
    boot: which boot of the machine this is.
    gpu: which GPU is here: real, simulated or none.
    identity: the machine-id, kept over restarts.
    nat: port 14444 redirected to our own port.
    prepare: the steps that prepare the machine at start.
    settings: the package's variables.
    smi: the nvidia-smi shim and the simulated GPU.
    state_lock: one appliance per STATE_DIR.
    steps: the result of one step of the preparation.
    worker: the third-party worker CLI inside the container.
"""
