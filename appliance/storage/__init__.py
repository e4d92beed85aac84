"""The database of accounts and money (SQLite or PostgreSQL), and Redis. Loaded only with ACCOUNTS=1.

Modules:
    database: what both databases promise: transactions, retries, errors, whether it is up.
    open: settings to a database.
    postgres: PostgreSQL, by a pool of connections.
    postgres_pool: which connection is used, kept, tried and closed.
    schema: every table.
    settings: the variables; always imported.
    sqlite: SQLite, by one writer that commits what waits together.
"""
