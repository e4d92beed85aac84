"""Renting GPUs from markets: offers, rentals, reservations. Loaded only with MARKET=1.

Modules:
    admission: whether a renter may rent; rows and holds in one transaction.
    batches: several instances, each for itself; what a repeated or failed order is told.
    billing_step: the money of one step of a rental.
    brake: limits of the operator, and reasons to stop launching.
    build: builds the parts that rent, and joins them.
    candidates: offers that may be taken, and the rows of rentals that take them.
    launches: from an order to a row, from a row to what its market is asked to start.
    listings: what each market lists, asked for once for all.
    loads: how busy rented instances are.
    market_store: what holds for all rentals, in the database.
    money: what rentals need of wallets, and what a rental costs.
    offer_choice: which offers are taken.
    offers: what all markets offer: searched at once, filtered, priced.
    providers: one module per market, all behind one contract.
    proxy: requests that the appliance sends to a target for a user.
    rental_rules: what happens to a rental next.
    rental_steps: what a rental's market shows, how it ends, what calls have done.
    rental_store: rentals and reservations in the database.
    rental_types: rentals and reservations: what is ordered, who pays, what is known of each.
    rental_work: works on rentals: asks, decides, writes, acts.
    reservations: several instances, all or none.
    service: what interfaces call to rent GPUs.
    settings: MARKET, the markets' keys, and what may be rented; always imported.
    sweep: compares what markets list with the rentals.
    types: what markets offer, what is launched, what runs there, and how a market says that it does not know.
    upkeep: rounds in the background, replacements, the start and the end of a process.
"""
