"""Events that users and operators are told, and how many each of them was told."""

from alembic import op
from sqlalchemy import Column, PrimaryKeyConstraint, Text

from appliance.storage.columns import at_least_0, text_column, whole_column

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Add the tables."""
    op.create_table(
        "event_marks",
        Column("user_id", Text, primary_key=True),  # whose events; "" = those of operators
        whole_column("last_seq", default=0),  # the number that was given last
        whole_column("credit_level", default=0),  # what was told last of how few credits are left
        *at_least_0("last_seq", "credit_level"),
        sqlite_strict=True,
    )
    op.create_table(
        "events",
        text_column("user_id"),  # "" = operators
        whole_column("seq"),  # from 1 for each of them, without gaps
        text_column("topic"),
        whole_column("at", index=True),
        text_column("data"),  # JSON
        PrimaryKeyConstraint("user_id", "seq"),
        sqlite_strict=True,
    )
