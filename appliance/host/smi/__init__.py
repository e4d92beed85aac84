"""The nvidia-smi shim and the simulated GPU."""
