"""Renting GPUs from markets: offers, rentals, reservations. Loaded only with MARKET=1.

Modules:
    providers: one module per market, all behind one contract.
    rental_types: rentals and reservations: what is ordered, who pays, what is known of each.
    service: what interfaces call to rent GPUs.
    settings: MARKET, the markets' keys, and what may be rented; always imported.
    types: what markets offer, what is launched, what runs there, and how a market says that it does not know.
"""
