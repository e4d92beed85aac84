"""The database of accounts and money (SQLite or PostgreSQL), and Redis. Loaded only with ACCOUNTS=1.

Modules:
    columns: what tables are made of.
    database: what both databases promise: transactions, retries, errors, whether it is up.
    events: what users and operators are told, numbered for each of them.
    migrate: brings the tables to a revision, in a process of its own; the only one that loads Alembic.
    migrations: the revisions.
    open: settings to a database.
    postgres: PostgreSQL, by a pool of connections.
    postgres_pool: which connection is used, kept, tried and closed.
    probed: whether a store is up; tries one that is down.
    redis_store: Redis: commands, scripts, counters, messages.
    revisions: which revisions this code can use.
    schema: every table.
    settings: the variables; always imported.
    sqlite: SQLite, by one writer that commits what waits together.
    statements: SQL for both databases.
"""
