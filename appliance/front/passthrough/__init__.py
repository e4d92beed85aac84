"""Requests that are handed to a backend as they came.

Modules:
    forwarded: a request as it is to be sent, and how it is read.
    passthrough: finds a server that answers, and relays the response.
    rules: what may pass, who may send it, which headers change.
    tunnel: connections that switch protocols, such as WebSocket.
    upload: a request's body on its way in, counted and limited.
"""
