"""Programs for administrators of accounts: `aiserve-gpuproxy-admin`, and verbs of `appliance`.

They work on the database itself, or over the control API of the appliance that holds it.

Modules:
    access: the database itself, or a running appliance.
    commands: what each command does and prints.
    flags: command lines as programs in Go read them.
    go_program: a program of commands as those of aiserve-gpuproxyd are.
    passwords: passwords that are typed, piped in, or must leave the list of processes.
    prices: files of prices, and prices as a table.
    program: `aiserve-gpuproxy-admin`.
    store: the parts of accounts, opened without a server.
    tables: aligned tables.
    verbs: the verbs users, keys, credits, prices, admin of `appliance`.
"""
