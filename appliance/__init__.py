"""One container that gives any machine an inference endpoint.

The layers are drawn in docs/architecture.md; `lint-imports` holds them.

Modules:
    __main__: the verbs of the command `appliance`.
    app: the appliance from start to end.
    base: settings, errors, logs, tasks, connections, metrics.
    build: the parts that appliance and sidecar have in common.
    build_models: the model manager.
    cli: the command line of a running appliance.
    control: the gRPC control API.
    download: the verb `download`.
    download_output: what that verb prints.
    downloads: model files: sources, resume, verification, jobs.
    engines: who answers a request.
    front: the HTTP interface.
    healthcheck: the verb `healthcheck`.
    host: the machine: its identity, GPU, port redirection, the worker.
    interfaces: the interfaces, built from the parts.
    lifecycle: the state of the process, from start to end.
    machine: the machine that the appliance runs on.
    models: models that run here: table, scheduler, processes.
    parts: the parts of a running appliance.
    reload: new settings while requests run.
    settings: all settings together.
    settings_checks: what is wrong with settings of several packages together.
    settings_text: all settings, rendered for people.
    sidecar: the verb `sidecar`.
"""

__version__ = "0.2.0"
