"""Requests that are passed on to a backend unchanged.

Modules:
    form: the model that a form names.
    forwarded: a request that is passed on.
    passthrough: finds a server that answers, and relays the response.
    rules: which requests are passed on, who may send them, which headers change.
    tunnel: connections that switch protocols, such as WebSocket.
    upload: the body of a request, streamed and limited.
"""
