"""The backends: what can answer a request, the state of each, and one attempt at each.

Modules:
    adapters: the LoRA adapters of one backend.
    breaker: the circuit breaker of one endpoint.
    contract: what router and dispatcher need of a backend, and what a backend reports to them.
    demo: the demo engine as a backend.
    demo_reply: the demo engine's replies in OpenAI's shapes.
    demo_schema: a small value that fits a JSON schema.
    demo_script: what the demo engine replies to a prompt.
    engine_load: the load of one server by its own metrics page.
    hosted: a paid OpenAI-compatible API.
    managed: the models whose llama-servers the model manager starts and stops.
    prober: the loop that probes one server.
    served_models: the models that one server serves.
    server: one server of an engine.
    server_state: the health, load and limits of one server.
    stats: the counters of one backend.
    tls: the TLS contexts of servers with TLS settings of their own.
"""
