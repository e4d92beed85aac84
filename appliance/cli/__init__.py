"""The command line, for people and scripts. It uses only the control API of a running appliance.

Modules:
    backends: commands about backends.
    client: the connection to the control API, and its failures.
    ctl: `appliance ctl`.
    jobs: commands about downloads.
    lora: commands about LoRA adapters.
    messages: the messages of the control API, imported when needed.
    models: commands about models, and `appliance models`.
    receipts: commands about receipts.
    render: what is shown of each response.
    screen: where output goes: tables, lines or JSON.
    session: what every command shares: global options, connection, failures.
"""
