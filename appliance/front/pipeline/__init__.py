"""What every request passes, whichever server has read it.

Modules:
    access: who may call, and with which key.
    access_log: one line per request.
    body: a JSON body and the types of its known fields.
    durations: durations as clients write them.
    errors: a failure as HTTP status and body, in each dialect.
    heads: heads of requests and responses, as bytes and as values.
    late: streams that begin before their response is there.
    options: what a request's headers say about where and when it is answered.
    pipeline: the steps from a request's id to its settlement.
    replies: engines' replies in one piece.
    request: what a handler takes.
    response: what a handler returns.
    route: one address of the HTTP API.
    sse: engines' event streams, and our own events.
"""
