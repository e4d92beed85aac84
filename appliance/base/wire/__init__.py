"""The pool of upstream connections of the hot path: HTTP/1.1 on asyncio protocols, parsed by httptools.

Modules:
    connection: one connection and its protocol; bytes in, a `PendingResponse` filled.
    dial: opens a connection: name resolution, TCP, TLS.
    pool: the pool; limits, queue, idle connections, time-outs.
    response: a response as callers see it: to be read whole, in chunks, or dropped.
    types: limits, time-outs, targets and errors.
"""
