"""Who calls and what it costs: users, keys, wallets, prices. Built where ACCOUNTS is on.

Modules:
    price_file: the file of PRICES_FILE, and what is wrong with it.
    prices: what tokens of a model cost.
"""
