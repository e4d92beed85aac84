"""Who calls and what it costs: users, keys, wallets, prices. Built where ACCOUNTS is on.

Modules:
    actor: who calls, and what a caller may do.
    allowance: what this process may spend of each wallet without asking the database.
    api_keys: keys as texts: made, recognised, stored as digests.
    audit: every wallet computed anew from the ledger.
    audit_log: who changed what.
    callers: credentials to who calls.
    changes: tells all replicas what was changed.
    directory: keeps users and keys in memory current.
    ended_sessions: which sessions other replicas have ended, where Redis alone keeps them.
    event_feed: who waits for events in this process.
    guardrails: limits on what is spent in a span of time.
    identity: builds and joins the parts that know who calls.
    issued_keys: API keys of users: made, listed, rotated, revoked.
    journal: what was held and charged, on the disk before the database knows it.
    key_caps: what an API key may spend in a month.
    ledger: every movement of money, never changed.
    limits: rate limits of users and keys, shared by all replicas.
    live_replicas: how many replicas live.
    meter: holds money for one request, and charges it once.
    money: builds and joins the parts that hold, charge and settle money.
    passwords: argon2id, and bcrypt of users that were taken over.
    price_file: the file of PRICES_FILE, and what is wrong with it.
    price_snapshot: the prices on disk, for restarts without the database.
    price_store: prices in the database, by versions.
    prices: what tokens of a model cost.
    quotas: requests per month.
    recovery: what a start does about the money of the time before.
    refresh_rules: what happens to a refresh token that is presented.
    rental_money: wallets for rented GPUs.
    renewals: periods of wallets.
    session_stores: where sessions are kept: database, Redis, or both.
    sessions: logins, their refreshes and their ends.
    settings: the variables; always imported.
    settlement: which tokens of an attempt are billed, and what is noted of it.
    settler: brings what was charged to the database.
    snapshot: what is known of users and keys, in memory.
    snapshot_file: the snapshot on disk, for restarts without the database.
    snapshot_reader: reads the snapshot from the database.
    tokens: access tokens and refresh tokens: made, verified, derived.
    totals: how much there is of everything.
    usage: settlements in the database.
    usage_events: sums of usage and low credits, as events.
    user_export: all that is stored of a user.
    user_forms: e-mail addresses, names and changes as callers send them.
    users: registration, login, profile, roles, deletion.
    wallets: wallets in the database: leases, grants, credits.
    windows: counting within a window of time.
"""
