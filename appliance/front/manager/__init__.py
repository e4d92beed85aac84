"""The model manager's addresses.

Modules:
    feeds: status and metrics as server-sent events.
    handlers: the addresses.
    objects: response bodies: memory, queues, health, telemetry.
    snapshot: the metrics of the last minute.
"""
