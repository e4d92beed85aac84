"""LoRA adapters: declared once, and kept loaded on every backend of their base model.

Modules:
    changes: an operator's load or unload, on every backend that is up or on none.
    commands: load and unload commands to several backends at a time.
    config_section: adapters of the configuration file.
    host: the contract of a backend that can have adapters.
    hosts: the backends that can have adapters, and which names each may serve.
    managed_host: adapters on the models that the appliance runs itself.
    manager: the parts of this package joined, as the interfaces use them.
    order: one order for an adapter, and how it is stored.
    orders: orders: checks, download, load, and what survives a restart.
    plan: decisions: which commands are due, and the state of an adapter on a backend.
    reconciler: the background loop that brings the backends to what is declared.
    replies: errors for what engines reply to commands.
    rules: which names, paths and sources are allowed.
    server_host: adapters on a server that the operator runs.
    status_view: the list of adapters, and why one cannot be requested.
    table: what is declared, under way and failed.
    table_file: the file of the declared adapters.
"""
