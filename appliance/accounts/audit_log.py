"""The audit: who changed what of users, keys and money. Rows are written in the transaction of the change.

They are never changed, so they name users by their ids: no e-mail address, no name.
"""

from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import insert

from appliance.base import jsons
from appliance.base.clock import Clock
from appliance.base.ids import new_id
from appliance.storage.database import Transaction
from appliance.storage.schema import audit

MAX_ADDRESS_CHARACTERS: Final = 45


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
