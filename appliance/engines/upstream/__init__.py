"""One attempt at one server: the request, the response, the stream.

Modules:
    attempt: an attempt that failed, and what follows from it.
    exchange: one request to a server, and its response, whole or as a stream.
    pacing: a whole response turned into a stream.
    refusal: what an engine's error response means.
    relay: a stream of events on its way through.
    request_body: what is sent up.
    response_builder: a stream put together to one whole response.
    splice: the model's name replaced in the bytes of a JSON object.
"""
