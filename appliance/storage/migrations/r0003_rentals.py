"""Rented GPUs: rentals, reservations, what was used, what is known of the markets."""

from alembic import op
from sqlalchemy import (
    CheckConstraint,
    Column,
    ForeignKey,
    Index,
    PrimaryKeyConstraint,
    Text,
    UniqueConstraint,
)

from appliance.storage.columns import Whole, at_least_0, flag_column, id_column, text_column, whole_column

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
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
        sqlite_strict=True,
    )
    op.create_table(
        "market_listings",
        text_column("provider"),
        Column("listed_at", Whole),  # the last complete listing
        Column("unknown_since", Whole),  # since then there was none; NULL = the last one was complete
        Column("credit_musd", Whole),
        Column("credit_at", Whole),
        PrimaryKeyConstraint("provider"),
        sqlite_strict=True,
    )
    op.create_table(
        "avoided_machines",
        text_column("provider"),
        text_column("machine_id"),
        whole_column("until", index=True),
        text_column("reason", default=""),
        PrimaryKeyConstraint("provider", "machine_id"),
        sqlite_strict=True,
    )
    op.create_table(
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
        sqlite_strict=True,
    )
    op.create_table(
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
        sqlite_strict=True,
    )
    op.create_table(
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
        sqlite_strict=True,
    )
