"""The model manager: the queue of each model, its llama-servers, and what is done next.

Modules:
    admission: lets requests in, at once or after a wait in the model's queue.
    device_memory: readings of the memory that models are loaded into.
    errors: why a model cannot serve a request now.
    estimates: what a load is expected to take, memory and time.
    events: what the manager reports as it happens.
    file_watch: notices when the files of models change.
    leases: slots of llama-servers, given to requests and taken back.
    manager: ModelManager, which holds the other parts.
    model_file: checks a model's file.
    model_state: the state of one model of the table.
    no_models: the readings of an appliance that runs no models.
    retention: how long a loaded model stays without requests.
    scheduler_input: what the scheduler decides from, read from the state.
    scheduler_loop: asks the scheduler what must happen next, and does it.
    state: the state that all parts share.
    status_view: the manager's readings for interfaces.
    supervisor: starts, watches and stops llama-servers.
    table_update: the state of the models after a change of the table.
    waiters: waiting requests and load commands, and the lease that a request gets.
    watchdog: measures and probes llama-servers in the background.
"""
