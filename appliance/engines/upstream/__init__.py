"""One attempt at one server: request, response, stream."""
