"""The HTTP server: client connections.

Modules:
    addresses: what an unknown address may mean.
    cold_protocol: aiohttp's part of a connection, with errors of our own.
    connections: what all connections of a server share.
    fast_connection: hot requests, read and written directly on the socket.
    server: the listening server, and aiohttp for requests that are not hot.
    web_socket: WebSocket connections, by aiohttp.
"""
