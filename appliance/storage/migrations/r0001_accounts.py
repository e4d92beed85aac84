"""Users, their keys and sessions; what changed, who runs, who did what."""

from alembic import op
from sqlalchemy import Column, ForeignKey, LargeBinary, Text

from appliance.storage.columns import Whole, flag_column, id_column, text_column, whole_column

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
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
        sqlite_strict=True,
    )
    op.create_table(
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
        sqlite_strict=True,
    )
    op.create_table(
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
        sqlite_strict=True,
    )
    op.create_table(
        "changes",
        Column("seq", Whole, primary_key=True, autoincrement=True),
        whole_column("at", index=True),
        text_column("kind"),
        text_column("id"),
        sqlite_autoincrement=True,
        sqlite_strict=True,
    )
    op.create_table(
        "replicas",
        id_column(),
        text_column("host", default=""),
        text_column("version", default=""),
        whole_column("epoch", default=0),
        whole_column("started_at"),
        whole_column("seen_at", index=True),
        sqlite_strict=True,
    )
    op.create_table(
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
        sqlite_strict=True,
    )
