"""The calls of the service, by subject.

Modules:
    accounts: users, API keys, sessions, credits, spending, prices.
    backends: list, watch, add, remove, drain; how one is chosen.
    chat: chat requests.
    group: the base of all groups, and checks of fields.
    jobs: downloads.
    logs: the latest lines of the log, and new ones.
    lora: LoRA adapters.
    models: the models that this appliance runs itself.
    receipts: what was decided for a request.
    settings: list them, read them again.
    status: the appliance as a whole: status, identity, drain, resume, shutdown.
    worker: see, start, stop, restart the worker.
"""
