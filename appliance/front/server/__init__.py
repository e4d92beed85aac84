"""The HTTP server: client connections.

Modules:
    connections: what all connections of a server share.
    fast_connection: hot requests, read and written directly on the socket.
    server: the listening server, and aiohttp for requests that are not hot.
"""
