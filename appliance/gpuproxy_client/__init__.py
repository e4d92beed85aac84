"""`aiserve-gpuproxy-client`: rents GPUs and shows load, over HTTP alone; nothing of the server is imported.

For compatibility, see docs/compatibility.md.

Modules:
    api: requests to an appliance, and what its refusals say.
    commands: what each command does and prints.
    credentials: the login of `login`, kept for the next run.
    instances: the commands that rent, renew and end.
    output: lines, tables and prices.
    program: the command line.
    starting: waits until an instance is ready.
"""
