"""The HTTP interface: dialects of OpenAI, Anthropic, Ollama; models, downloads, adapters, status, metrics.

Modules:
    account_gate: who is admitted where there are accounts.
    accounts: users, keys, sessions, credits, prices; only with ACCOUNTS=1.
    anthropic: Anthropic's dialect.
    balance: addresses about backends and load balancing.
    downloads: addresses of downloads and their jobs.
    events: what users are told as it happens: a WebSocket, and polling; only with ACCOUNTS=1.
    inner_calls: calls of the addresses from inside the process.
    lora: addresses of LoRA adapters.
    manager: addresses of the models that run on this machine.
    market: offers and rentals of GPUs, requests through the proxy; with MARKET=1 only.
    ollama: Ollama's dialect.
    openai: OpenAI's dialect.
    openapi: the description of the API, and its page.
    passthrough: requests that are passed on to a backend unchanged.
    pipeline: the steps that every request passes.
    receipts: the request log.
    routes: the table of all addresses.
    routes_text: the same table, rendered for people.
    server: the HTTP server and its connections.
    settings: what can be configured.
    sidecar: addresses of the sidecar's port.
    sidecar_metrics: the sidecar's page of an engine's metrics.
    spending: what the requests of users cost.
    status_file_feeds: the feed of a process beside the appliance, from its status file.
    status_listener: the port that shows the progress of the start.
    system: addresses about the appliance itself.
    tickets: tickets for browsers.
    ui: the web UI.
"""
