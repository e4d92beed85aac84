"""The present state of topics, for clients that have missed events of them."""

from typing import Any, Final

from appliance.accounts.identity import Identity
from appliance.accounts.money import MoneyStore
from appliance.accounts.sessions import session_to_json
from appliance.base.errors import NotFound
from appliance.front.events.cursor import Snapshot

SPAN_MS: Final = 30 * 86_400_000


def build_snapshots(identity: Identity, store: MoneyStore) -> dict[str, Snapshot]:
    """Return how the state of each topic of accounts is read.

    Args:
        identity: Who calls.
        store: What of the money is in the database.
    """

    async def wallet_of(user_id: str) -> str:
        user = await identity.directory.user(user_id)
        if user is None:
            raise NotFound("The account no longer exists.", code="user_unknown")
        return user.wallet_id

    async def billing(user_id: str) -> dict[str, Any]:
        return (await store.wallets.find(await wallet_of(user_id))).credits(user_id)

    async def usage(user_id: str) -> Any:
        now_ms = round(identity.clock.now_s() * 1000)
        sums = await store.usage.grouped(
            [], wallet_id=await wallet_of(user_id), since_ms=max(0, now_ms - SPAN_MS), until_ms=now_ms + 1
        )
        return {"last_30_days": sums[0] if sums else None}

    async def sessions(user_id: str) -> dict[str, Any]:
        return {"sessions": [session_to_json(row) for row in await identity.sessions.of_user(user_id)]}

    return {"billing": billing, "usage": usage, "sessions": sessions}
