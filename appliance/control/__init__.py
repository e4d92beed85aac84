"""The control API over gRPC, for orchestrators and the command line; it shows the same objects as HTTP.

Modules:
    account_service: the calls about accounts, also without a server; loaded with ACCOUNTS=1.
    calls: the calls of the service, by subject.
    convert: between objects of the appliance and messages.
    errors: errors as gRPC statuses.
    follow: iterate over an endless source until the control API closes.
    gpuproxy: the gRPC API of aiserve-gpuproxyd, at a port of its own.
    guard: who may call, and whether the settings are safe.
    health: the standard health service.
    interceptor: token, errors and log line of every call.
    listening: what the gRPC servers have in common: options, port, TLS.
    parts: the parts of the appliance that the control API uses.
    reflection: server reflection, v1 and v1alpha.
    server: where it listens, its limits, its shutdown.
    servicer: the service, composed of its groups of calls.
    settings: where it listens, and how callers authenticate.
    v1: messages and stubs, generated from protos/appliance/control/v1, not committed.
    writing: send to a caller that may have left.
"""
