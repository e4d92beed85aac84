"""All that is stored of one user, for that user: `GET /user/export`."""

from typing import Any, Final

from sqlalchemy import Table, select

from appliance.accounts.issued_keys import IssuedKeys, render_ms
from appliance.accounts.sessions import Sessions, session_to_json
from appliance.accounts.users import Users
from appliance.base.clock import Clock, format_rfc3339
from appliance.storage.database import Database
from appliance.storage.schema import audit, credits, gpu_usage, usage, usage_quotas, wallets

MAX_ROWS: Final = 10_000  # of one table, the newest
_TIMES: Final = {"at", "created_at", "updated_at", "reset_at", "period_end", "start_time", "end_time"}


async def export_user(
    user_id: str, *, database: Database, users: Users, keys: IssuedKeys, sessions: Sessions, clock: Clock
) -> dict[str, Any]:
    """Return all that is stored of a user, ready for JSON; no hash and no secret is among it.

    Returns:
        `{user, api_keys, sessions, usage_quota, wallet, usage, credits, audit, gpu_usage, transactions,
        exported_at}`; of usage, audit and gpu_usage the newest 10000 rows.

    Raises:
        NotFound: There is no such user.
        StoreUnavailable: The database is down.
    """
    user = await users.get(user_id)
    issued = await keys.of_user(user_id)
    clients = [user_id, *(key.id for key in issued)]  # sessions of credits are kept by key, or by user
    return {
        "user": user.to_json(),
        "api_keys": [key.to_json() for key in issued],
        "sessions": [session_to_json(row) for row in await sessions.of_user(user_id)],
        "usage_quota": next(
            iter(await _rows(database, usage_quotas, usage_quotas.c.user_id == user_id)), None
        ),
        "wallet": next(iter(await _rows(database, wallets, wallets.c.user_id == user_id)), None),
        "usage": await _rows(database, usage, usage.c.user_id == user_id, newest=usage.c.at),
        "credits": await _rows(
            database, credits, credits.c.client_id.in_(clients), newest=credits.c.created_at
        ),
        "audit": await _rows(database, audit, audit.c.subject_id == user_id, newest=audit.c.at),
        "gpu_usage": await _rows(
            database, gpu_usage, gpu_usage.c.user_id == user_id, newest=gpu_usage.c.start_time
        ),
        "transactions": [],
        "exported_at": format_rfc3339(clock.now_s(), fraction_digits=3),
    }


async def _rows(
    database: Database, table: Table, condition: Any, *, newest: Any = None
) -> list[dict[str, Any]]:
    query = select(table).where(condition).limit(MAX_ROWS)
    if newest is not None:
        query = query.order_by(newest.desc())
    async with database.transaction(is_read_only=True) as transaction:
        rows = await transaction.execute(query)
    return [_to_json(row._mapping) for row in rows]


def _to_json(row: Any) -> dict[str, Any]:
    """Return a row as JSON has it: times as text, money in dollars and time of GPUs in hours, named so."""
    found: dict[str, Any] = {}
    for name, value in row.items():
        if name in _TIMES:
            found[name] = render_ms(value)
        elif name.endswith("_musd"):
            found[name.removesuffix("_musd")] = None if value is None else value / 1_000_000
        elif name.endswith("_gpu_seconds"):
            found[name.removesuffix("seconds") + "hours"] = round(value / 3600, 2)
        elif not isinstance(value, bytes):
            found[name] = value
    return found
