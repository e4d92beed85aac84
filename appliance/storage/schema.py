"""Every table, as the migrations leave them; a test holds both equal. Both databases have the same ones.

Money is whole micro-dollars (names end in `_musd`), times are milliseconds since 1970, ids are UUIDs of
version 7 as text, structures are JSON as text. SQLite's tables are STRICT. Triggers stand in the migrations.
"""

from typing import Any

from sqlalchemy import (
    CheckConstraint,
    Column,
    ForeignKey,
    Index,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    Table,
    Text,
    UniqueConstraint,
)

from appliance.storage.columns import Whole, at_least_0, flag_column, id_column, text_column, whole_column

CONVENTION = {
    "pk": "pk_%(table_name)s",
    "fk": "fk_%(table_name)s_%(column_0_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
}
metadata = MetaData(naming_convention=CONVENTION)


def _table(name: str, *parts: Any, **options: Any) -> Table:
    return Table(name, metadata, *parts, sqlite_strict=True, **options)


# ---- revision 0001: who

users = _table(
    "users",
    id_column(),
    text_column("email", unique=True),  # in lower case
    text_column("password_hash"),  # "" = this user cannot log in by a password
    text_column("name", default=""),
    flag_column("is_admin", default=False),
    flag_column("is_active", default=True),
    text_column("plan", default=""),  # the name of the limits that hold; "" = those of the settings
    text_column("limits", default="{}"),  # JSON: limits of this user alone
    whole_column("created_at"),
    whole_column("updated_at"),
)
api_keys = _table(
    "api_keys",
    id_column(),
    text_column("user_id", ForeignKey("users.id"), index=True),
    Column("key_hash", LargeBinary, nullable=False, unique=True),  # SHA-256 of the whole key
    text_column("prefix"),  # what is shown of it
    text_column("name", default=""),
    text_column("scopes", default="[]"),  # JSON: a list
    Column("models", Text),  # JSON: a list of those that it can use; NULL = all
    text_column("limits", default="{}"),  # JSON: limits of this key alone
    Column("spend_cap_musd", Whole),  # in a calendar month; NULL = none
    flag_column("stay_local", default=False),
    flag_column("is_active", default=True),
    Column("expires_at", Whole, index=True),
    Column("last_used_at", Whole),
    whole_column("created_at"),
)
sessions = _table(
    "sessions",
    id_column(),
    text_column("user_id", ForeignKey("users.id"), index=True),
    Column("token_hash", LargeBinary, nullable=False, unique=True),  # SHA-256 of the refresh token
    Column("previous_hash", LargeBinary, index=True),
    whole_column("generation", default=0),
    Column("rotated_at", Whole),
    Column("revoked_at", Whole),
    whole_column("expires_at", index=True),
    text_column("ip_address", default=""),
    text_column("user_agent", default=""),
    whole_column("created_at"),
)
changes = _table(
    "changes",
    Column("seq", Whole, primary_key=True, autoincrement=True),
    whole_column("at", index=True),
    text_column("kind"),
    text_column("id"),
    sqlite_autoincrement=True,
)
replicas = _table(
    "replicas",
    id_column(),
    text_column("host", default=""),
    text_column("version", default=""),
    whole_column("epoch", default=0),
    whole_column("started_at"),
    whole_column("seen_at", index=True),
)
audit = _table(
    "audit",
    id_column(),
    whole_column("at", index=True),
    text_column("actor_kind"),
    Column("actor_id", Text),
    text_column("action"),
    Column("subject_kind", Text),
    Column("subject_id", Text, index=True),
    text_column("ip_address", default=""),
    text_column("details", default="{}"),  # JSON
)

# ---- revision 0002: money

wallets = _table(
    "wallets",
    id_column(),
    Column("user_id", Text, ForeignKey("users.id"), unique=True),
    whole_column("plan_musd", default=0),
    whole_column("extra_musd", default=0),
    whole_column("used_musd", default=0),
    whole_column("leased_musd", default=0),
    whole_column("cap_musd", default=0),
    whole_column("owed_musd", default=0),
    whole_column("last_grant_musd", default=0),
    flag_column("auto_renew", default=False),
    whole_column("anchor_day", default=1),  # of the month, UTC, on which a period begins
    Column("period_end", Whole, index=True),
    text_column("state", default="active"),
    whole_column("created_at", default=0),
    whole_column("updated_at", default=0),
    *at_least_0("plan_musd", "extra_musd", "used_musd", "leased_musd", "cap_musd", "owed_musd"),
    CheckConstraint(
        "used_musd + leased_musd <= plan_musd + extra_musd + cap_musd", name="used_and_leased_within_credit"
    ),
    CheckConstraint("anchor_day BETWEEN 1 AND 31", name="anchor_day_of_a_month"),
    CheckConstraint("state IN ('active', 'frozen', 'closed')", name="state_known"),
)
wallet_leases = _table(
    "wallet_leases",
    text_column("replica_id"),
    text_column("wallet_id", ForeignKey("wallets.id"), index=True),
    whole_column("amount_musd"),
    whole_column("epoch", default=0),
    whole_column("updated_at", default=0),
    PrimaryKeyConstraint("replica_id", "wallet_id"),
    *at_least_0("amount_musd"),
)
ledger_tx = _table(
    "ledger_tx",
    id_column(),
    text_column("kind"),
    text_column("ref"),
    whole_column("at", index=True),
    text_column("note", default=""),
    UniqueConstraint("kind", "ref"),
)
ledger_postings = _table(
    "ledger_postings",
    text_column("tx_id", ForeignKey("ledger_tx.id")),
    whole_column("n"),
    text_column("account", index=True),
    whole_column("amount_musd"),
    PrimaryKeyConstraint("tx_id", "n"),
    CheckConstraint("amount_musd <> 0", name="amount_musd_not_0"),
)
usage = _table(
    "usage",
    Column("attempt_id", Text, primary_key=True),
    whole_column("at", index=True),
    text_column("wallet_id"),
    Column("user_id", Text),
    Column("key_id", Text),
    text_column("kind", default="inference"),
    text_column("model", default=""),
    text_column("served_model", default=""),
    text_column("backend", default=""),
    whole_column("tokens_in", default=0),
    whole_column("tokens_cached", default=0),
    whole_column("tokens_out", default=0),
    text_column("source", default="none"),
    Column("price_version", Whole),
    whole_column("charged_musd", default=0),
    whole_column("cost_musd", default=0),
    whole_column("supply_musd", default=0),
    Column("receipt", Text),  # JSON
    Index(None, "wallet_id", "at"),
    Index(None, "user_id", "at"),
    Index(None, "key_id", "at"),
    *at_least_0("tokens_in", "tokens_cached", "tokens_out", "charged_musd", "cost_musd", "supply_musd"),
)
prices = _table(
    "prices",
    text_column("model"),  # "*" = any other one
    whole_column("version"),
    whole_column("valid_from", default=0),
    whole_column("in_musd", default=0),  # of a million tokens, as the next two and the last
    Column("cached_in_musd", Whole),  # NULL = as in_musd
    whole_column("out_musd", default=0),
    whole_column("embedding_musd", default=0),
    whole_column("per_request_musd", default=0),
    whole_column("gpu_hour_markup_percent", default=0),
    text_column("created_by", default=""),
    whole_column("created_at", default=0),
    PrimaryKeyConstraint("model", "version"),
    *at_least_0("in_musd", "cached_in_musd", "out_musd", "embedding_musd", "per_request_musd"),
)
spend_buckets = _table(
    "spend_buckets",
    text_column("wallet_id"),
    whole_column("bucket"),  # minutes since 1970 / 5
    whole_column("spent_musd", default=0),
    PrimaryKeyConstraint("wallet_id", "bucket"),
    *at_least_0("spent_musd"),
)
spend_resets = _table(
    "spend_resets",
    text_column("wallet_id"),
    text_column("window_name"),
    whole_column("reset_at"),
    PrimaryKeyConstraint("wallet_id", "window_name"),
)
key_spend = _table(
    "key_spend",
    text_column("key_id"),
    text_column("month"),  # YYYY-MM, UTC
    whole_column("spent_musd", default=0),
    PrimaryKeyConstraint("key_id", "month"),
    *at_least_0("spent_musd"),
)
usage_quotas = _table(
    "usage_quotas",
    id_column(),
    text_column("user_id", ForeignKey("users.id"), unique=True),
    whole_column("max_gpu_seconds", default=360_000),
    whole_column("used_gpu_seconds", default=0),
    whole_column("max_requests", default=10_000),
    whole_column("used_requests", default=0),
    whole_column("reset_at", index=True),
    text_column("reset_interval", default="monthly"),
    whole_column("created_at", default=0),
    whole_column("updated_at", default=0),
    *at_least_0("max_gpu_seconds", "used_gpu_seconds", "max_requests", "used_requests"),
)
credits = _table(
    "credits",
    id_column(),
    text_column("client_id", index=True),
    text_column("ip", default=""),
    text_column("date", index=True),  # YYYY-MM-DD, UTC
    text_column("time"),  # HH:MM:SS
    whole_column("duration", default=0),  # seconds
    whole_column("credits_remaining_musd", default=0),
    whole_column("credits_total_musd", default=0),
    whole_column("credits_overage_musd", default=0),
    whole_column("credits_cap_musd", default=0),
    flag_column("credits_auto_renew", default=False),
    whole_column("created_at"),
    whole_column("updated_at", default=0),
)

# ---- revision 0003: rented GPUs

market_state = _table(
    "market_state",
    id_column(),  # "market": there is one row
    text_column("install_id"),  # in the labels of our instances
    flag_column("is_frozen", default=False),
    text_column("frozen_reason", default=""),
    text_column("frozen_by", default=""),
    Column("frozen_at", Whole),
    whole_column("failed_starts", default=0),  # in a row
    Column("paused_until", Whole),
    text_column("sweeper", default=""),  # which process looks for instances that no rental knows
    whole_column("sweeper_until", default=0),
    whole_column("updated_at", default=0),
)
market_listings = _table(
    "market_listings",
    text_column("provider"),
    Column("listed_at", Whole),  # the last complete listing
    Column("unknown_since", Whole),  # since then there was none; NULL = the last one was complete
    Column("credit_musd", Whole),
    Column("credit_at", Whole),
    PrimaryKeyConstraint("provider"),
)
avoided_machines = _table(
    "avoided_machines",
    text_column("provider"),
    text_column("machine_id"),
    whole_column("until", index=True),
    text_column("reason", default=""),
    PrimaryKeyConstraint("provider", "machine_id"),
)
reservations = _table(
    "reservations",
    id_column(),
    Column("user_id", Text, ForeignKey("users.id"), index=True),
    text_column("wallet_id", ForeignKey("wallets.id"), index=True),
    Column("key_id", Text),
    Column("idempotency_key", Text),
    text_column("request", default=""),  # a digest of what was asked for
    whole_column("count"),
    flag_column("is_partial", default=False),
    text_column("state", default="open"),
    whole_column("tries", default=0),
    text_column("errors", default="[]"),  # JSON: a list
    whole_column("created_at"),
    whole_column("updated_at", default=0),
    text_column("owner", default=""),  # the process that makes it
    whole_column("owner_until", default=0),
    UniqueConstraint("wallet_id", "idempotency_key"),
    CheckConstraint("state IN ('open', 'done', 'rolling_back', 'rolled_back')", name="state_known"),
    *at_least_0("count", "tries"),
)
rentals = _table(
    "rentals",
    id_column(),
    text_column("label", unique=True),  # of the instance, at its market
    text_column("state", index=True),
    Column("user_id", Text, ForeignKey("users.id"), index=True),
    text_column("wallet_id", ForeignKey("wallets.id"), index=True),
    Column("key_id", Text),
    Column("reservation_id", Text, ForeignKey("reservations.id"), index=True),
    Column("replaces", Text),  # the rental whose start failed
    whole_column("start_tries", default=1),
    Column("idempotency_key", Text),
    text_column("request", default=""),  # a digest of what was asked for
    # what is rented
    text_column("provider"),
    text_column("offer_id"),
    text_column("machine_id", default=""),
    text_column("contract_id", default=""),  # "" = not created yet, or not known
    text_column("gpu_name", default=""),
    whole_column("gpu_count", default=1),
    whole_column("vram_mb", default=0),
    text_column("location", default=""),
    text_column("model", default=""),
    text_column("launch", default="{}"),  # JSON: what runs there
    text_column("secrets", default="{}"),  # JSON: variables of the container; emptied when it has ended
    whole_column("price_musd_per_h"),
    whole_column("supply_musd_per_h"),
    whole_column("prepaid_hours", default=0),
    Column("max_cost_musd", Whole),
    # when
    whole_column("created_at", index=True),
    whole_column("updated_at", default=0),
    Column("create_called_at", Whole),
    whole_column("start_deadline_at"),
    whole_column("lease_ends_at"),
    Column("dead_man_at", Whole),  # then the instance stops itself
    Column("ready_at", Whole),
    Column("last_seen_at", Whole),
    Column("draining_since", Whole),
    Column("destroying_since", Whole),
    Column("destroy_called_at", Whole),
    Column("ended_at", Whole),
    # money
    whole_column("held_musd", default=0),
    whole_column("cost_musd", default=0),  # by its price
    whole_column("charged_musd", default=0),  # what of that was taken from the wallet
    whole_column("supply_musd", default=0),  # what the market asks of us
    whole_column("paid_musd", default=0),  # ahead, as the market says
    whole_column("gpu_seconds", default=0),
    whole_column("settlements", default=0),
    Column("settled_at", Whole),
    Column("billed_from", Whole),
    Column("billed_until", Whole),
    Column("supplied_from", Whole),
    Column("supplied_until", Whole),
    text_column("clock", default="ours"),  # whose clock says when it began: ours, provider
    # what was noticed
    whole_column("misses", default=0),  # complete answers in a row that lack it
    Column("first_missed_at", Whole),
    Column("bad_since", Whole),  # it neither starts nor runs
    whole_column("destroy_calls", default=0),
    text_column("end_state", default=""),  # the state in which it ends
    text_column("end_reason", default=""),
    whole_column("warned_s", default=0),  # the last warning that was given: seconds before the end
    flag_column("is_ceiling_told", default=False),
    text_column("alarm", default=""),
    text_column("last_error", default=""),
    text_column("market_status", default=""),
    text_column("host", default=""),
    text_column("ports", default="{}"),  # JSON: port of the container → port at `host`
    # who works on it
    Column("next_look_at", Whole, index=True),  # NULL = it has ended
    text_column("owner", default=""),
    whole_column("owner_until", default=0),
    whole_column("turn", default=0),  # of the last process that worked on it
    UniqueConstraint("wallet_id", "idempotency_key"),
    Index(None, "provider", "contract_id"),
    CheckConstraint(
        "state IN ('wanted', 'creating', 'unknown', 'starting', 'ready', 'draining', 'destroying', "
        "'gone', 'failed', 'lost')",
        name="state_known",
    ),
    *at_least_0(
        "price_musd_per_h", "supply_musd_per_h", "held_musd", "cost_musd", "charged_musd", "supply_musd"
    ),
    *at_least_0("paid_musd", "gpu_seconds", "settlements"),
)
gpu_usage = _table(
    "gpu_usage",
    id_column(),
    Column("user_id", Text, ForeignKey("users.id"), index=True),
    text_column("provider"),
    text_column("instance_id"),
    text_column("gpu_model", default=""),
    whole_column("start_time"),
    Column("end_time", Whole),  # NULL = it runs
    whole_column("duration", default=0),  # seconds
    whole_column("cost_musd", default=0),
    Column("billing_id", Text, index=True),  # the rental
    *at_least_0("duration", "cost_musd"),
)

# ---- revision 0004: events

event_marks = _table(
    "event_marks",
    Column("user_id", Text, primary_key=True),  # whose events; "" = those of operators
    whole_column("last_seq", default=0),  # the number that was given last
    whole_column("credit_level", default=0),  # what was told last of how few credits are left
    *at_least_0("last_seq", "credit_level"),
)
events = _table(
    "events",
    text_column("user_id"),  # "" = operators
    whole_column("seq"),  # from 1 for each of them, without gaps
    text_column("topic"),
    whole_column("at", index=True),
    text_column("data"),  # JSON
    PrimaryKeyConstraint("user_id", "seq"),
)
