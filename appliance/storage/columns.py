"""Columns as tables and migrations are made of. What stands here is never changed: old migrations use it."""

from typing import Any

from sqlalchemy import BigInteger, Boolean, CheckConstraint, Column, Integer, Text, text
from sqlalchemy.engine import Dialect
from sqlalchemy.types import TypeDecorator, TypeEngine

# SQLite has one type of whole numbers, of 8 bytes.
Whole = BigInteger().with_variant(Integer(), "sqlite")


class Flag(TypeDecorator[bool]):
    """A boolean: PostgreSQL's own, 0 or 1 in SQLite, whose strict tables have none."""

    impl = Boolean
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """Return the type of a database."""
        return dialect.type_descriptor(Integer() if dialect.name == "sqlite" else Boolean())

    def process_bind_param(self, value: bool | None, dialect: Dialect) -> Any:
        """Return the value as the database takes it."""
        return int(value) if dialect.name == "sqlite" and value is not None else value

    def process_result_value(self, value: Any, dialect: Dialect) -> bool | None:
        """Return the value that the database gave."""
        return None if value is None else bool(value)


def id_column() -> Column[str]:
    """Return the primary key `id`."""
    return Column("id", Text, primary_key=True)


def text_column(name: str, *parts: Any, default: str | None = None, **options: Any) -> Column[str]:
    """Return a column of text, never NULL."""
    return Column(name, Text, *parts, nullable=False, server_default=default, **options)


def whole_column(name: str, default: int | None = None, **options: Any) -> Column[int]:
    """Return a column of whole numbers, never NULL."""
    given = None if default is None else text(str(default))
    return Column(name, Whole, nullable=False, server_default=given, **options)


def flag_column(name: str, default: bool) -> Column[bool]:
    """Return a column of booleans, never NULL."""
    # SQLite reads the words true and false as 1 and 0, too.
    return Column(name, Flag, nullable=False, server_default=text("true" if default else "false"))


def at_least_0(*columns: str) -> list[CheckConstraint]:
    """Return the rules that these columns are not negative."""
    return [CheckConstraint(f"{column} >= 0", name=f"{column}_at_least_0") for column in columns]
