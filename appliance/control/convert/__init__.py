"""Between objects of the appliance and the messages of control.proto. Pure.

Modules:
    accounts: users, keys, sessions, credits, prices; loaded with ACCOUNTS=1.
    backends: backends and receipts.
    chat: chat requests and replies.
    jobs: download jobs.
    lora: LoRA adapters and their orders.
    models: models, queues and devices.
    status: status, identity, worker, settings, lines of the log.
    values: timestamps, enums, texts, structs.
"""
