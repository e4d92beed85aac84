"""Every table, as the migrations leave them; a test holds both equal. Both databases have the same ones.

Money is whole micro-dollars (names end in `_musd`), times are milliseconds since 1970, ids are UUIDs of
version 7 as text, structures are JSON as text. SQLite's tables are STRICT. Triggers stand in the migrations.
"""

from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    Table,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.engine import Dialect
from sqlalchemy.types import TypeDecorator, TypeEngine

CONVENTION = {
    "pk": "pk_%(table_name)s",
    "fk": "fk_%(table_name)s_%(column_0_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
}
metadata = MetaData(naming_convention=CONVENTION)
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


def _table(name: str, *parts: Any, **options: Any) -> Table:
    return Table(name, metadata, *parts, sqlite_strict=True, **options)


def _id() -> Column[str]:
    return Column("id", Text, primary_key=True)


def _text(name: str, *parts: Any, default: str | None = None, **options: Any) -> Column[str]:
    return Column(name, Text, *parts, nullable=False, server_default=default, **options)


def _whole(name: str, default: int | None = None, **options: Any) -> Column[int]:
    given = None if default is None else text(str(default))
    return Column(name, Whole, nullable=False, server_default=given, **options)


def _flag(name: str, default: bool) -> Column[bool]:
    # SQLite reads the words true and false as 1 and 0, too.
    return Column(name, Flag, nullable=False, server_default=text("true" if default else "false"))


def _at_least_0(*columns: str) -> list[CheckConstraint]:
    return [CheckConstraint(f"{column} >= 0", name=f"{column}_at_least_0") for column in columns]


# ---- revision 0001: who

users = _table(
    "users",
    _id(),
    _text("email", unique=True),  # in lower case
    _text("password_hash"),  # "" = this user cannot log in by a password
    _text("name", default=""),
    _flag("is_admin", default=False),
    _flag("is_active", default=True),
    _text("plan", default=""),  # the name of the limits that hold; "" = those of the settings
    _text("limits", default="{}"),  # JSON: limits of this user alone
    _whole("created_at"),
    _whole("updated_at"),
)
api_keys = _table(
    "api_keys",
    _id(),
    _text("user_id", ForeignKey("users.id"), index=True),
    Column("key_hash", LargeBinary, nullable=False, unique=True),  # SHA-256 of the whole key
    _text("prefix"),  # what is shown of it
    _text("name", default=""),
    _text("scopes", default="[]"),  # JSON: a list
    Column("models", Text),  # JSON: a list of those that it can use; NULL = all
    _text("limits", default="{}"),  # JSON: limits of this key alone
    Column("spend_cap_musd", Whole),  # in a calendar month; NULL = none
    _flag("stay_local", default=False),
    _flag("is_active", default=True),
    Column("expires_at", Whole, index=True),
    Column("last_used_at", Whole),
    _whole("created_at"),
)
sessions = _table(
    "sessions",
    _id(),
    _text("user_id", ForeignKey("users.id"), index=True),
    Column("token_hash", LargeBinary, nullable=False, unique=True),  # SHA-256 of the refresh token
    Column("previous_hash", LargeBinary, index=True),
    _whole("generation", default=0),
    Column("rotated_at", Whole),
    Column("revoked_at", Whole),
    _whole("expires_at", index=True),
    _text("ip_address", default=""),
    _text("user_agent", default=""),
    _whole("created_at"),
)
changes = _table(
    "changes",
    Column("seq", Whole, primary_key=True, autoincrement=True),
    _whole("at", index=True),
    _text("kind"),
    _text("id"),
    sqlite_autoincrement=True,
)
replicas = _table(
    "replicas",
    _id(),
    _text("host", default=""),
    _text("version", default=""),
    _whole("epoch", default=0),
    _whole("started_at"),
    _whole("seen_at", index=True),
)
audit = _table(
    "audit",
    _id(),
    _whole("at", index=True),
    _text("actor_kind"),
    Column("actor_id", Text),
    _text("action"),
    Column("subject_kind", Text),
    Column("subject_id", Text, index=True),
    _text("ip_address", default=""),
    _text("details", default="{}"),  # JSON
)

# ---- revision 0002: money

wallets = _table(
    "wallets",
    _id(),
    Column("user_id", Text, ForeignKey("users.id"), unique=True),
    _whole("plan_musd", default=0),
    _whole("extra_musd", default=0),
    _whole("used_musd", default=0),
    _whole("leased_musd", default=0),
    _whole("cap_musd", default=0),
    _whole("owed_musd", default=0),
    _whole("last_grant_musd", default=0),
    _flag("auto_renew", default=False),
    _whole("anchor_day", default=1),  # of the month, UTC, on which a period begins
    Column("period_end", Whole, index=True),
    _text("state", default="active"),
    _whole("created_at", default=0),
    _whole("updated_at", default=0),
    *_at_least_0("plan_musd", "extra_musd", "used_musd", "leased_musd", "cap_musd", "owed_musd"),
    CheckConstraint(
        "used_musd + leased_musd <= plan_musd + extra_musd + cap_musd", name="used_and_leased_within_credit"
    ),
    CheckConstraint("anchor_day BETWEEN 1 AND 31", name="anchor_day_of_a_month"),
    CheckConstraint("state IN ('active', 'frozen', 'closed')", name="state_known"),
)
wallet_leases = _table(
    "wallet_leases",
    _text("replica_id"),
    _text("wallet_id", ForeignKey("wallets.id"), index=True),
    _whole("amount_musd"),
    _whole("epoch", default=0),
    _whole("updated_at", default=0),
    PrimaryKeyConstraint("replica_id", "wallet_id"),
    *_at_least_0("amount_musd"),
)
ledger_tx = _table(
    "ledger_tx",
    _id(),
    _text("kind"),
    _text("ref"),
    _whole("at", index=True),
    _text("note", default=""),
    UniqueConstraint("kind", "ref"),
)
ledger_postings = _table(
    "ledger_postings",
    _text("tx_id", ForeignKey("ledger_tx.id")),
    _whole("n"),
    _text("account", index=True),
    _whole("amount_musd"),
    PrimaryKeyConstraint("tx_id", "n"),
    CheckConstraint("amount_musd <> 0", name="amount_musd_not_0"),
)
usage = _table(
    "usage",
    Column("attempt_id", Text, primary_key=True),
    _whole("at", index=True),
    _text("wallet_id"),
    Column("user_id", Text),
    Column("key_id", Text),
    _text("kind", default="inference"),
    _text("model", default=""),
    _text("served_model", default=""),
    _text("backend", default=""),
    _whole("tokens_in", default=0),
    _whole("tokens_cached", default=0),
    _whole("tokens_out", default=0),
    _text("source", default="none"),
    Column("price_version", Whole),
    _whole("charged_musd", default=0),
    _whole("cost_musd", default=0),
    _whole("supply_musd", default=0),
    Column("receipt", Text),  # JSON
    Index(None, "wallet_id", "at"),
    Index(None, "user_id", "at"),
    Index(None, "key_id", "at"),
    *_at_least_0("tokens_in", "tokens_cached", "tokens_out", "charged_musd", "cost_musd", "supply_musd"),
)
prices = _table(
    "prices",
    _text("model"),  # "*" = any other one
    _whole("version"),
    _whole("valid_from", default=0),
    _whole("in_musd", default=0),  # of a million tokens, as the next two and the last
    Column("cached_in_musd", Whole),  # NULL = as in_musd
    _whole("out_musd", default=0),
    _whole("embedding_musd", default=0),
    _whole("per_request_musd", default=0),
    _whole("gpu_hour_markup_percent", default=0),
    _text("created_by", default=""),
    _whole("created_at", default=0),
    PrimaryKeyConstraint("model", "version"),
    *_at_least_0("in_musd", "cached_in_musd", "out_musd", "embedding_musd", "per_request_musd"),
)
spend_buckets = _table(
    "spend_buckets",
    _text("wallet_id"),
    _whole("bucket"),  # minutes since 1970 / 5
    _whole("spent_musd", default=0),
    PrimaryKeyConstraint("wallet_id", "bucket"),
    *_at_least_0("spent_musd"),
)
spend_resets = _table(
    "spend_resets",
    _text("wallet_id"),
    _text("window_name"),
    _whole("reset_at"),
    PrimaryKeyConstraint("wallet_id", "window_name"),
)
key_spend = _table(
    "key_spend",
    _text("key_id"),
    _text("month"),  # YYYY-MM, UTC
    _whole("spent_musd", default=0),
    PrimaryKeyConstraint("key_id", "month"),
    *_at_least_0("spent_musd"),
)
usage_quotas = _table(
    "usage_quotas",
    _id(),
    _text("user_id", ForeignKey("users.id"), unique=True),
    _whole("max_gpu_seconds", default=360_000),
    _whole("used_gpu_seconds", default=0),
    _whole("max_requests", default=10_000),
    _whole("used_requests", default=0),
    _whole("reset_at", index=True),
    _text("reset_interval", default="monthly"),
    _whole("created_at", default=0),
    _whole("updated_at", default=0),
    *_at_least_0("max_gpu_seconds", "used_gpu_seconds", "max_requests", "used_requests"),
)
credits = _table(
    "credits",
    _id(),
    _text("client_id", index=True),
    _text("ip", default=""),
    _text("date", index=True),  # YYYY-MM-DD, UTC
    _text("time"),  # HH:MM:SS
    _whole("duration", default=0),  # seconds
    _whole("credits_remaining_musd", default=0),
    _whole("credits_total_musd", default=0),
    _whole("credits_overage_musd", default=0),
    _whole("credits_cap_musd", default=0),
    _flag("credits_auto_renew", default=False),
    _whole("created_at"),
    _whole("updated_at", default=0),
)
