"""The lowest layer: tools for every package; nothing here knows of models, engines or interfaces.

Modules:
    balancing: how one of several equal servers is chosen.
    clock: the one place that reads the time, and a clock for tests.
    config_file: the configuration file, JSON or YAML.
    config_yaml: YAML, loaded only where there is some.
    durable_jobs: jobs of named steps that run in the background and outlast a restart.
    errors: what went wrong (Kind), as an exception that may be shown to the caller.
    fair_queue: a queue with priorities, ageing and turns, in which no flow starves.
    file_events: tells when files may have changed, by the kernel's inotify.
    file_looks: looks at files when they may have changed.
    files: files that are written completely or not at all.
    go_durations: durations as Go writes them.
    http: streaming HTTP client for requests outside the hot path; the only user of aiohttp's client.
    ids: ids of rows, which sort by time.
    inline: coroutines that run without a task, inside callbacks.
    jsons: JSON by orjson.
    listeners: what to say where an address cannot be listened on.
    log_buffer: the latest log lines, to be followed while they are written.
    logs: structured logs, with secrets replaced.
    markdown: tables for generated pages.
    metrics: metric families, and pages in Prometheus' formats.
    money: amounts as whole micro-dollars.
    plain_text: text without what controls a terminal.
    proxies: the proxies of HTTPS_PROXY and similar variables, for downloads.
    redis_client: connections to Redis.
    reach: which hosts may be contacted and which folders may be read.
    rental_charges: what markets and wallets tell each other about a rented GPU.
    retry_budget: how many retries are allowed, as a share of the requests.
    setting_types: the types of settings that are more than a text or a number.
    settings: the machinery of settings; every package declares its own with it.
    single_flight: one run of a piece of work for all callers at the same time.
    sse: server-sent events, parsed.
    ssrf: which addresses may be called for a caller, however they are written.
    tasks: background tasks that cannot die unnoticed.
    time_limit: how callers limit the time of a request.
    watch: one value with any number of followers.
    wire: the pool of upstream connections of the hot path.
    write_batch: writes to sockets, made together at the end of a turn of the loop.
"""
