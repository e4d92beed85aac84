"""The manager's readings, and how they are published.

Modules:
    file: model_status.json.
    measures: the `router_` metrics, and the report of the last five minutes.
    objects: the status objects of server and models.
    views: plain values, and ModelManagerApi, the protocol that returns them.
"""
