"""The HTTP server: client connections."""
