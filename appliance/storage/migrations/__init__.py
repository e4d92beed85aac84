"""The revisions of the tables, one module each, in Alembic's form; forward only, for both databases.

A revision works with the release before it: it adds; what is no longer used is removed one release later.

Modules:
    r0001_accounts: users, keys, sessions, changes, replicas, audit.
    r0002_money: wallets, ledger, usage, prices, quotas, credits.
    r0003_rentals: rentals, reservations, what is known of the markets.
    r0004_events: events and their numbers.
"""
