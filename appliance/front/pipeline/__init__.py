"""The steps that every request passes, whichever server has read it.

Modules:
    access: who may call, and with which key.
    access_tickets: a key's access to one stream, in the query.
    access_log: one line per request.
    body: a JSON body and the types of its known fields.
    chat_turns: messages of other dialects as chat templates take them.
    durations: durations in request bodies.
    encoding: compressed request bodies.
    errors: a failure as HTTP status and body, in each dialect.
    heads: HTTP heads: parse those of requests, render those of responses.
    ignored: the header that names what was left out.
    late: streams that begin before the engine has answered.
    options: how a request is routed, from its headers.
    origins: which web pages and host names may call without a key.
    pipeline: the steps from a request's id to its settlement.
    query: the values of a query, checked.
    replies: engines' whole replies.
    request: what a handler receives.
    response: what a handler returns.
    route: one address of the HTTP API.
    sockets: a connection of messages, as handlers see it.
    sse: engines' event streams, and the appliance's own events.
    token_estimate: how many tokens a prompt has, where no engine can count them.
"""
