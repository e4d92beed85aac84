"""Who calls and what it costs: users, keys, wallets, prices. Built where ACCOUNTS is on.

Modules:
    actor: who calls, and what a caller may do.
    api_keys: keys as texts: made, recognised, stored as digests.
    limits: rate limits of users and keys, shared by all replicas.
    price_file: the file of PRICES_FILE, and what is wrong with it.
    prices: what tokens of a model cost.
    settings: the variables; always imported.
    windows: counting within a window of time.
"""
