"""Statements for both databases: written for PostgreSQL, said for SQLite where it differs.

SQLite has one writer at a time, so that nothing has to be locked there.
"""

from collections.abc import Iterable
from functools import lru_cache
from typing import Any

from appliance.base import jsons

_IN_SQLITE = (
    ("LEAST(", "MIN("),
    ("GREATEST(", "MAX("),
    (" FOR UPDATE", ""),
    ("= ANY(:ids)", "IN (SELECT value FROM json_each(:ids))"),
)


@lru_cache(maxsize=512)
def statement_for(kind: str, statement: str) -> str:
    """Return a statement as a database says it.

    Args:
        kind: `sqlite` or `postgres`.
        statement: May use LEAST, GREATEST, FOR UPDATE (at the end of a query), and `= ANY(:ids)` with
            `list_for`.
    """
    if kind == "sqlite":
        for ours, theirs in _IN_SQLITE:
            statement = statement.replace(ours, theirs)
    return statement


def list_for(kind: str, values: Iterable[str]) -> Any:
    """Return the parameter `ids` of a statement with `= ANY(:ids)`."""
    return jsons.dumps_text(list(values)) if kind == "sqlite" else list(values)
