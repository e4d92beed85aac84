"""The backends: who can answer a request, what is known of each, and one attempt at each.

Modules:
    adapters: the declared LoRA adapters of one backend.
    breaker: the circuit breaker of one endpoint.
    contract: what every backend is to the router and the dispatcher, and what it reports to them.
    demo: the demo engine as a backend.
    demo_reply: the demo engine's replies in OpenAI's shapes.
    demo_script: what the demo engine replies to a prompt.
    engine_load: the load of one server as its own metrics page showed it.
    hosted: a paid OpenAI-compatible API.
    managed: the models whose llama-servers the model manager starts and stops.
    prober: the loop that probes one server.
    served_models: the models that one server serves.
    server: one server of an engine.
    server_state: the health, load and limits of one server.
    stats: the counters of one backend.
    tls: the TLS contexts of servers that want their own.
"""
