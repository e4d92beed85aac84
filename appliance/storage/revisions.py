"""Which revisions of the tables this code can use, and what to do about others. Alembic is not loaded."""

import sqlite3
from contextlib import closing
from pathlib import Path

from appliance.storage.database import StoreRefused, Transaction

NEWEST = 4  # the last one of `migrations`
LOWEST = NEWEST
HIGHEST = NEWEST + 1  # the next release's: while replicas are exchanged one after the other, both run
TABLE = "alembic_version"
COMMAND = "appliance migrate"
FIND_TABLE = {
    "sqlite": "SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = :name",
    "postgres": "SELECT 1 FROM pg_catalog.pg_class WHERE oid = to_regclass(:name)",
}


def revision_name(number: int) -> str:
    """Return a revision's name, `0002`."""
    return f"{number:04}"


def problem_of(revision: int | None) -> str:
    """Say why a revision cannot be used, and what to do; "" = it can.

    Args:
        revision: The database's; None = it has no tables of ours.
    """
    if revision is None:
        return f"It has no tables yet: run `{COMMAND}`"
    name = revision_name(revision)
    if revision < LOWEST:
        return f"Its tables are of revision {name}, and {revision_name(LOWEST)} is needed: run `{COMMAND}`"
    if revision > HIGHEST:
        return (
            f"Its tables are of revision {name}; this version of the appliance knows those up to "
            f"{revision_name(HIGHEST)}: use a newer one"
        )
    return ""


async def check_revision(transaction: Transaction) -> None:
    """Refuse a database whose revision cannot be used.

    Raises:
        StoreRefused: With what to do.
    """
    problem = problem_of(await read_revision(transaction))
    if problem:
        raise StoreRefused(f"The database cannot be used. {problem}")


async def read_revision(transaction: Transaction) -> int | None:
    """Return the revision of the tables; None = there are none of ours."""
    if not await transaction.execute(FIND_TABLE[transaction.kind], {"name": TABLE}):
        return None
    rows = await transaction.execute(f"SELECT version_num FROM {TABLE}")  # noqa: S608 - a name of ours
    return int(rows[0][0]) if rows else None


def read_sqlite_revision(path: Path) -> int | None:
    """Return the revision of a file's tables; None = there are none of ours, or no file (blocking).

    Raises:
        sqlite3.Error: It cannot be read.
    """
    if not path.exists() or not path.stat().st_size:
        return None
    with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=2)) as connection:
        if not connection.execute(FIND_TABLE["sqlite"], {"name": TABLE}).fetchone():
            return None
        row = connection.execute(f"SELECT version_num FROM {TABLE}").fetchone()  # noqa: S608 - a name of ours
    return int(row[0]) if row else None
