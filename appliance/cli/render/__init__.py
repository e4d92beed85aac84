"""What is shown of each response: rows of tables, names with values, sentences. Pure.

Modules:
    backends: backends and receipts.
    jobs: downloads.
    logs: lines of logs.
    lora: LoRA adapters.
    models: models, queues and devices.
    status: status, identity, worker.
    values: times, sizes, enums, optional fields as text.
"""
