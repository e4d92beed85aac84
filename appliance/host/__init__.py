"""The machine we stand on: machine-id, GPU identity, the nvidia-smi shim, NAT, the worker.

settings · identity (machine-id) · gpu (which GPU is here, and the made-up one) · smi (what nvidia-smi prints) ·
shim (the program in front of it) · nat (14444 → our port) · worker (the third-party CLI) · prepare (the steps at start)
"""
