"""Wallets, their ledger, usage, prices, quotas; rows that are never changed."""

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

revision = "0002"
down_revision = "0001"

# Rows of the ledger are never changed; those of usage and the audit log can be removed when they are old.
FIXED = {
    "ledger_tx": ("UPDATE", "DELETE"),
    "ledger_postings": ("UPDATE", "DELETE"),
    "usage": ("UPDATE",),
    "audit": ("UPDATE",),
}
TRIGGERS = {
    "sqlite": [
        f"CREATE TRIGGER {table}_no_{verb.lower()} BEFORE {verb} ON {table} "
        f"BEGIN SELECT RAISE(ABORT, '{table}_fixed: rows of {table} are never changed'); END"
        for table, verbs in FIXED.items()
        for verb in verbs
    ],
    "postgresql": [
        "CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        "RAISE EXCEPTION USING MESSAGE = 'rows of ' || TG_TABLE_NAME || ' are never changed', "
        "CONSTRAINT = TG_TABLE_NAME || '_fixed'; "
        "END $$",
        *(
            f"CREATE TRIGGER {table}_fixed BEFORE {' OR '.join(verbs)} ON {table} "
            "FOR EACH ROW EXECUTE FUNCTION refuse_change()"
            for table, verbs in FIXED.items()
        ),
        *(
            f"CREATE TRIGGER {table}_kept BEFORE TRUNCATE ON {table} "
            "FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()"
            for table, verbs in FIXED.items()
            if "DELETE" in verbs
        ),
        # At the end of the transaction: the postings of each entry add up to 0.
        "CREATE FUNCTION check_postings() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        "IF (SELECT sum(amount_musd) FROM ledger_postings WHERE tx_id = NEW.tx_id) <> 0 THEN "
        "RAISE EXCEPTION USING MESSAGE = 'the postings of ' || NEW.tx_id || ' do not add up to 0', "
        "CONSTRAINT = 'ledger_postings_sum'; "
        "END IF; RETURN NULL; END $$",
        "CREATE CONSTRAINT TRIGGER ledger_postings_sum AFTER INSERT ON ledger_postings "
        "DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION check_postings()",
    ],
}


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
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
            "used_musd + leased_musd <= plan_musd + extra_musd + cap_musd",
            name="used_and_leased_within_credit",
        ),
        CheckConstraint("anchor_day BETWEEN 1 AND 31", name="anchor_day_of_a_month"),
        CheckConstraint("state IN ('active', 'frozen', 'closed')", name="state_known"),
        sqlite_strict=True,
    )
    op.create_table(
        "wallet_leases",
        text_column("replica_id"),
        text_column("wallet_id", ForeignKey("wallets.id"), index=True),
        whole_column("amount_musd"),
        whole_column("epoch", default=0),
        whole_column("updated_at", default=0),
        PrimaryKeyConstraint("replica_id", "wallet_id"),
        *at_least_0("amount_musd"),
        sqlite_strict=True,
    )
    op.create_table(
        "ledger_tx",
        id_column(),
        text_column("kind"),
        text_column("ref"),
        whole_column("at", index=True),
        text_column("note", default=""),
        UniqueConstraint("kind", "ref"),
        sqlite_strict=True,
    )
    op.create_table(
        "ledger_postings",
        text_column("tx_id", ForeignKey("ledger_tx.id")),
        whole_column("n"),
        text_column("account", index=True),
        whole_column("amount_musd"),
        PrimaryKeyConstraint("tx_id", "n"),
        CheckConstraint("amount_musd <> 0", name="amount_musd_not_0"),
        sqlite_strict=True,
    )
    op.create_table(
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
        sqlite_strict=True,
    )
    op.create_table(
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
        sqlite_strict=True,
    )
    op.create_table(
        "spend_buckets",
        text_column("wallet_id"),
        whole_column("bucket"),  # minutes since 1970 / 5
        whole_column("spent_musd", default=0),
        PrimaryKeyConstraint("wallet_id", "bucket"),
        *at_least_0("spent_musd"),
        sqlite_strict=True,
    )
    op.create_table(
        "spend_resets",
        text_column("wallet_id"),
        text_column("window_name"),
        whole_column("reset_at"),
        PrimaryKeyConstraint("wallet_id", "window_name"),
        sqlite_strict=True,
    )
    op.create_table(
        "key_spend",
        text_column("key_id"),
        text_column("month"),  # YYYY-MM, UTC
        whole_column("spent_musd", default=0),
        PrimaryKeyConstraint("key_id", "month"),
        *at_least_0("spent_musd"),
        sqlite_strict=True,
    )
    op.create_table(
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
        sqlite_strict=True,
    )
    op.create_table(
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
        sqlite_strict=True,
    )
    for statement in TRIGGERS[op.get_context().dialect.name]:
        op.execute(statement)
