"""Who calls and what it costs: users, keys, wallets, prices. Built where ACCOUNTS is on.

Modules:
    actor: who calls, and what a caller may do.
    allowance: what this process may spend of each wallet without asking the database.
    api_keys: keys as texts: made, recognised, stored as digests.
    journal: what was held and charged, on the disk before the database knows it.
    limits: rate limits of users and keys, shared by all replicas.
    meter: holds money for one request, and charges it once.
    passwords: argon2id, and bcrypt of users that were taken over.
    price_file: the file of PRICES_FILE, and what is wrong with it.
    prices: what tokens of a model cost.
    refresh_rules: what happens to a refresh token that is presented.
    settings: the variables; always imported.
    settlement: which tokens of an attempt are billed, and what is noted of it.
    tokens: access tokens and refresh tokens: made, verified, derived.
    windows: counting within a window of time.
"""
