"""`appliance simulate`: stand-ins for markets, for rehearsals without money; all say that they are simulated.

Nothing of the server imports this. Each service has one loopback port; all have /_truth, /_fault, /_clock.

Modules:
    answers: what a service answers or refuses, and the table of its addresses.
    control: /_truth, /_fault, /_clock: what really runs, what is to go wrong, what time it is.
    faults: which faults there are, which of them are waiting, which one a request gets.
    filters: the filters, the order and the pages of vast.ai's listings.
    fleet: the instances of one market: their life by the clock, what they cost, what became of them.
    ionet: io.net's API for containers.
    ionet_rows: how io.net describes deployments and their containers.
    ionet_stock: the hardware and the locations that io.net offers.
    program: the verb: its command line, its output, its signals.
    rented_engines: the engine that answers on each instance that runs.
    server: one port: addresses, faults before and after an answer, limits.
    twin: all services together, in a process of their own or inside a test.
    twin_clock: the time of the stand-ins, which can be advanced and run faster.
    vast: vast.ai's API.
    vast_offers: the offers of vast.ai.
    vast_rows: how vast.ai's listing describes an instance.
"""
