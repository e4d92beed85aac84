"""The audit: who changed what of users, keys and money. Rows are written in the transaction of the change.

They are never changed, so they name users by their ids: no e-mail address, no name.
"""

from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import insert, select

from appliance.base import jsons
from appliance.base.clock import Clock, format_rfc3339_ms
from appliance.base.ids import new_id
from appliance.storage.database import Database, Transaction
from appliance.storage.schema import audit

MAX_ADDRESS_CHARACTERS: Final = 45
MAX_ROWS: Final = 1000


@dataclass(frozen=True, slots=True)
class Author:
    """Who makes a change.

    Attributes:
        kind: `user`, `operator`, `command` or `system`.
        id: Of the user; None = no user.
        ip_address: From where; "" = this machine.
    """

    kind: str
    id: str | None = None
    ip_address: str = ""


SYSTEM: Final = Author("system")


async def write_audit(
    transaction: Transaction,
    clock: Clock,
    author: Author,
    action: str,
    *,
    subject: tuple[str, str],
    details: dict[str, Any] | None = None,
) -> None:
    """Write one row.

    Args:
        transaction: That of the change.
        author: Who makes it.
        action: A short word, such as `user.register`.
        subject: (kind, id) of what is changed.
        details: What it was and is, ready for JSON; never a secret, or what tells who a user is.
    """
    row = {
        "id": new_id(clock),
        "at": round(clock.now_s() * 1000),
        "actor_kind": author.kind,
        "actor_id": author.id,
        "action": action,
        "subject_kind": subject[0],
        "subject_id": subject[1],
        "ip_address": author.ip_address[:MAX_ADDRESS_CHARACTERS],
        "details": jsons.dumps_text(details or {}),
    }
    await transaction.execute(insert(audit), [row])


async def read_audit(
    database: Database,
    *,
    subject_id: str = "",
    actor_id: str = "",
    action: str = "",
    before_id: str = "",
    limit: int = 100,
) -> list[dict[str, Any]]:
    """Return rows for JSON, the newest first.

    Args:
        database: Where they are.
        subject_id: Of what was changed; "" = of anything.
        actor_id: Who changed it; "" = anyone.
        action: What was done, such as `user.change`; "" = anything.
        before_id: Only rows before this one; "" = from the newest on.
        limit: At most so many, up to MAX_ROWS.

    Raises:
        StoreUnavailable: The database is down.
    """
    query = select(audit).order_by(audit.c.id.desc()).limit(max(1, min(limit, MAX_ROWS)))
    for column, wanted in (
        (audit.c.subject_id, subject_id),
        (audit.c.actor_id, actor_id),
        (audit.c.action, action),
    ):
        if wanted:
            query = query.where(column == wanted)
    if before_id:
        query = query.where(audit.c.id < before_id)
    async with database.transaction(is_read_only=True) as transaction:
        rows = await transaction.execute(query)
    return [
        {
            "id": row.id,
            "at": format_rfc3339_ms(row.at),
            "actor_kind": row.actor_kind,
            "actor_id": row.actor_id,
            "action": row.action,
            "subject_kind": row.subject_kind,
            "subject_id": row.subject_id,
            "ip_address": row.ip_address,
            "details": jsons.loads(row.details),
        }
        for row in rows
    ]
