"""The nvidia-smi shim and the simulated GPU. Standard library only: pollers start it every second.

Modules:
    command: the simulated nvidia-smi: its arguments and what it prints.
    fields: the fields of `--query-…`.
    help: the usage text and the lists of fields.
    report: the report of `-q`, as text and XML.
    shim: decides which tool responds: the real one, the simulated one, or none.
    simulated: the identity of the simulated GPU.
    table: the table that is printed without arguments.
"""
