"""The control API over gRPC, for an orchestrator: the same objects as HTTP.

Modules:
    calls: the calls of the service, by subject.
    convert: between our objects and the messages.
    errors: failures in gRPC's terms.
    follow: take values until the control API closes.
    guard: who may call, and whether the settings are safe.
    health: the standard health service.
    interceptor: token, errors and log line of every call.
    parts: what the control API reaches.
    server: where it listens, its limits, its shutdown.
    servicer: the service, from its groups of calls.
    settings: where it listens, and how callers authenticate.
    v1: messages and stubs, generated from protos/appliance/control/v1, not committed.
    writing: write to a caller that may have left.
"""
