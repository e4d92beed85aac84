"""One attempt at one server: the request, the response, the stream.

Modules:
    attempt: an attempt that failed, and whether another may follow.
    error_event: errors inside responses of status 200, and the words of error bodies.
    error_texts: what the sentences of engines' errors mean, a table.
    exchange: one request to a server, and its response, whole or as a stream.
    pacing: a whole response cut into a stream.
    plain_chunk: chunks of a stream that need no repair, recognised in one pass.
    plain_reply: whole responses that need no repair, recognised in one pass.
    refusal: what an engine's error response means.
    relay: a stream of events passed on to the client.
    reply_text: text, reasoning and refusals, under all their names.
    request_body: the body of an upstream request.
    request_settings: what the model table says about requests, applied to one.
    response_builder: a stream joined to one whole response.
    spelling: options that each kind of engine spells in its own way.
    splice: the model's name replaced in the bytes of a JSON object.
    token_counts: counts of tokens, of prompt caches too.
    tool_calls: tool calls put together from fragments.
    whole_reply: whole responses checked, and with texts and arguments of one type.
"""
