"""Markets that rent out GPUs, one module each; none knows another.

Modules:
    contract: what every market promises.
"""
