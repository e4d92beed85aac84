"""The HTTP server: client connections.

Modules:
    connections: what all connections of a server share.
    fast_connection: hot requests, straight from the socket.
    server: the listening server, and aiohttp for everything that is not hot.
"""
