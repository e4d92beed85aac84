"""`appliance simulate`: stand-ins for paid services, for rehearsals; they say that they are simulated.

Nothing of the server imports this. Each service has one loopback port; all
of them have /_truth, /_fault, /_clock and /_pay.

Modules:
    answers: what a service answers or refuses, and the table of its addresses.
    chain: nodes of Ethereum and Polygon, as far as a watcher of payments asks them.
    chain_blocks: a chain without nodes: its blocks follow from the time.
    control: /_truth, /_fault, /_clock, /_pay: what really runs, what goes wrong, the time, what customers do.
    faults: which faults there are, which of them are waiting, which one a request gets.
    filters: the filters, the order and the pages of vast.ai's listings.
    fleet: the instances of one market: their life by the clock, what they cost, what became of them.
    ionet: io.net's API for containers.
    ionet_rows: how io.net describes deployments and their containers.
    ionet_stock: the hardware and the locations that io.net offers.
    loopback: which hosts are this machine alone.
    novita: Novita's OpenAI-compatible API.
    program: the verb: its command line, its output, its signals.
    rented_engines: the engine that answers on each instance that runs.
    server: one port: addresses, faults before and after an answer, limits.
    stripe: Stripe's API.
    stripe_cards: Stripe's cards for tests.
    stripe_checkout: Stripe's Checkout.
    stripe_forms: how Stripe's forms are read.
    stripe_ledger: what Stripe's stand-in knows, and what happens to payments.
    stripe_webhooks: Stripe's events on their way.
    twin: all services together, in a process of their own or inside a test.
    twin_clock: the time of the stand-ins, which can be advanced and run faster.
    vast: vast.ai's API.
    vast_offers: the offers of vast.ai.
    vast_rows: how vast.ai's listing describes an instance.
"""
