"""Offers and rentals of GPUs, and requests through the proxy, below /api/v1/gpu; loaded with MARKET=1 alone.

Modules:
    admin: what operators see of all rentals, and do to the market.
    groups: the groups of renting, joined.
    instances: offers, and one's own rentals.
    orders: what callers send: filters and orders.
    proxy: requests that the appliance sends to a target for a user.
    proxy_charges: what such a request costs.
"""
