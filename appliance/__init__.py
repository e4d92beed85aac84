"""One container that gives any machine an inference endpoint.

The layers are described in docs/architecture.md; `lint-imports` checks them.

Modules:
    __main__: the verbs of the command `appliance`.
    account_status: what is shown of the accounts in status and metrics.
    accounts: who calls and what it costs: users, keys, wallets, prices.
    admin: programs for administrators of accounts.
    app: the appliance from start to end.
    base: settings, errors, logs, tasks, connections, metrics.
    build: builds the parts that appliance and sidecar have in common.
    build_accounts: builds and opens the accounts.
    build_market: builds and opens renting of GPUs.
    build_models: builds the model manager.
    build_proxy: builds the proxy of POST /api/v1/gpu/proxy.
    build_ui: builds the web UI.
    cli: the command line of a running appliance.
    command_lines: the verbs of the command, and the arguments of most of them.
    completion: completion of the command in bash, zsh and fish.
    config_schema: the JSON schema of the configuration file.
    config_watch: reads the settings again when their files change.
    control: the gRPC control API.
    download: the verb `download`.
    download_output: what that verb prints.
    downloads: model files: sources, resume, verification, jobs.
    engines: backends and routing: which server answers a request.
    front: the HTTP interface.
    gpuproxy_environ: the environment of aiserve-gpuproxyd's programs: `.env`, that project's names.
    gpuproxy_client: `aiserve-gpuproxy-client`: rents GPUs over HTTP.
    gpuproxyd: `aiserve-gpuproxyd`: serves with that environment.
    healthcheck: the verb `healthcheck`.
    host: the machine: its identity, GPU, port redirection, the worker.
    interfaces: builds the interfaces from the parts.
    lifecycle: the state of the process, from start to end.
    machine: the results of `prepare`, the worker's port, the worker.
    market: renting GPUs from markets; loaded only with MARKET=1.
    market_status: what is shown of rented GPUs in status and metrics.
    model_files: takes in model files that came or changed.
    models: models that run here: table, scheduler, processes.
    parts: the parts of a running appliance.
    reload: applies new settings while requests run.
    service_manager: what systemd is told: ready, reloading, stopping, signs of life.
    settings: all settings together.
    settings_accounts: checks of the settings of accounts.
    settings_addresses: the check for backends that are the appliance itself.
    settings_checks: checks that concern settings of several packages.
    settings_file: the section `settings` of the configuration file.
    settings_folders: checks of the folders that settings name.
    settings_market: checks of the settings of the markets.
    settings_prices: the prices of PRICES_FILE.
    settings_text: all settings, rendered for people.
    sidecar: the verb `sidecar`.
    simulate: `appliance simulate`: stand-ins for paid services, for rehearsals without money.
    signals: SIGTERM, SIGINT and SIGHUP of a serving process.
    status_server: the status of models from their status file, as a process of its own.
    storage: the database of accounts, and Redis; loaded only with ACCOUNTS=1.
    support: the verb `support`.
    support_bundle: the file that it writes, without secrets.
"""

__version__ = "0.2.0"
