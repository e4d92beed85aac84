"""What users and operators are told: `/ws`, `/polling`, `/stats`, `/monitor`. Served where ACCOUNTS is on.

Modules:
    chats: chats over a socket, by the address of /v1.
    cursor: reads one receiver's events from a number on.
    event_socket: one connection of `/ws`.
    handlers: the addresses.
    listeners: who may hear which topics.
    messages: what clients of a socket send, checked.
    snapshots: the present state of topics.
"""
