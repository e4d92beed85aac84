"""The engines: which backend answers a request, and how it is reached.

Modules:
    aliases: the names of the hosted model.
    backends: what can answer: servers, managed models, the hosted API, the demo engine.
    billing: the meter of a request that an account pays for.
    dialects: how each kind of engine is queried and commanded.
    direct: slots for passthrough and tunnels, which speak to a server themselves.
    dispatch: which backend gets a request; the queue; another backend after a failure.
    dispatch_errors: the errors for a request that no backend answered.
    dispatch_request: one request on its way to a backend.
    fleet: the set of backends, from settings, file and run-time changes.
    kv: the index of cached blocks, from the engines' KV events.
    left_streams: billed streams of a hosted API, read to their end without their clients.
    lora: adapters that are loaded into running engines.
    metered_stream: a stream that is paid for while it flows.
    metrics: the engines' own metrics, read and given common names.
    outcome: how attempts and requests end, and what that means.
    overview: the engines' part of our own metrics page.
    persistence: writes run-time changes to files of the state folder.
    pool: backends that can replace each other.
    receipts: what was decided for a request, and why.
    router: the entry point: takes a request for a model, returns a reply.
    routes: what a model's name leads to.
    runtime_changes: changes to the fleet that outlast a restart.
    settings: the environment variables of this package.
    slots: the right to send one request to one backend.
    specs: backends as operators write them.
    stream: a response as a stream of pieces.
    time_limited: requests whose time their client limits.
    types: requests, replies, models and states.
    upstream: one attempt at one server.
    wait_queues: requests that wait for capacity.
"""
