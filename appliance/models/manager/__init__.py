"""The model manager: who waits for which model, which llama-servers run, and what is done next.

Modules:
    admission: lets requests in, at once or after a wait in the model's queue.
    device_memory: readings of the memory that models are loaded into.
    errors: why a model cannot serve a request now.
    estimates: what a load is expected to take, memory and time.
    events: what the manager reports as it happens.
    leases: slots of llama-servers, given to requests and taken back.
    manager: ModelManager, which holds the other parts.
    model_file: what a model's file says, or why it cannot be loaded.
    model_state: what is kept of one model of the table.
    retention: how long a loaded model stays without requests.
    scheduler_input: what the scheduler decides from, read from the state.
    scheduler_loop: asks the scheduler what must happen next, and does it.
    state: what all parts share.
    status_view: the readings for interfaces.
    supervisor: starts, watches and stops llama-servers.
    table_update: what the state is after the table was read anew.
    waiters: who waits for a model, and the lease that ends the wait.
    watchdog: measures and probes llama-servers in the background.
"""
