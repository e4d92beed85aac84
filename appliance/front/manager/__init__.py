"""The model manager's addresses.

Modules:
    feeds: status and figures as server-sent events.
    handlers: the addresses.
    objects: the bodies of readings: memory, queues, health, telemetry.
    snapshot: the figures of the last minute.
"""
