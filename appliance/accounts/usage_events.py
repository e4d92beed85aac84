"""Events about what users spend: sums of usage, every few seconds at most, and that credits run low."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from appliance.accounts.settlement import Settlement
from appliance.accounts.wallets import Wallet, read_wallet
from appliance.base.clock import Clock, format_rfc3339_ms
from appliance.base.money import to_dollars
from appliance.storage.database import Database, StoreUnavailable, Transaction
from appliance.storage.events import EventLog
from appliance.storage.statements import list_for, statement_for

TELL_S: Final = 5.0
MAX_USERS: Final = 10_000  # whose sums wait; of more nothing is told until there is headroom
TOGETHER: Final = 200  # users in one transaction
LOW_PERCENT: Final = (20, 10, 5, 0)


@dataclass(slots=True)
class _Sum:
    """What one user has used since it was told last."""

    wallet_id: str
    since_ms: int
    requests: int = 0
    tokens_in: int = 0
    tokens_cached: int = 0
    tokens_out: int = 0
    charged_musd: int = 0
    models: dict[str, int] = field(default_factory=dict)

    def to_json(self, until_ms: int) -> dict[str, Any]:
        return {
            "requests": self.requests,
            "tokens_in": self.tokens_in,
            "tokens_cached": self.tokens_cached,
            "tokens_out": self.tokens_out,
            "cost": to_dollars(self.charged_musd),
            "models": self.models,
            "since": format_rfc3339_ms(self.since_ms),
            "until": format_rfc3339_ms(until_ms),
        }


def level_of(wallet: Wallet) -> int:
    """Return how low credits are: 0 = above all of LOW_PERCENT, 1 = at or below its first one, and so on.

    1. no credits at all, and no overage allowed  → 0: there is nothing that could run low
    2. otherwise                                  → by what is left of plan and extra
    """
    total = wallet.total_musd
    if total <= 0:  # 1
        return 0
    return sum(wallet.remaining_musd * 100 <= total * percent for percent in LOW_PERCENT)  # 2


class UsageEvents:
    """Collects what was settled in this process, and tells each user the sum now and then.

    The sums are in memory: what was not told when the process is killed is not told later. What was used is
    in the table `usage` in any case.

    Args:
        database: Of the wallets.
        events: Where the events go.
        clock: The time.
    """

    def __init__(self, database: Database, events: EventLog, *, clock: Clock) -> None:
        self._database = database
        self._events = events
        self._clock = clock
        self._sums: dict[str, _Sum] = {}

    def add(self, batch: Sequence[Settlement]) -> None:
        """Take attempts that were settled; does not wait."""
        now_ms = self._now_ms()
        for one in batch:
            user_id = one.note.user_id
            if not user_id:
                continue
            known = self._sums.get(user_id)
            if known is None:
                if len(self._sums) >= MAX_USERS:
                    continue
                known = self._sums[user_id] = _Sum(one.note.wallet_id, min(now_ms, one.note.at_ms))
            known.requests += 1
            known.tokens_in += one.end.read
            known.tokens_cached += one.end.cached
            known.tokens_out += one.end.written
            known.charged_musd += one.end.charged_musd
            if one.note.model in known.models or len(known.models) < 20:
                known.models[one.note.model] = known.models.get(one.note.model, 0) + 1

    async def tell(self) -> None:
        """Write one event for each user with new usage, and one where credits run low.

        While the database is down the sums wait.
        """
        while self._sums:
            users = sorted(self._sums)[:TOGETHER]
            sums = {user_id: self._sums.pop(user_id) for user_id in users}
            try:
                await self._database.run(lambda transaction, sums=sums: self._write(transaction, sums))  # type: ignore[misc]
            except StoreUnavailable:
                for user_id, one in sums.items():
                    self._put_back(user_id, one)
                return
            await self._events.announce()
            if len(users) < TOGETHER:
                return

    async def _write(self, transaction: Transaction, sums: Mapping[str, _Sum]) -> None:
        rows = await transaction.execute(
            statement_for(self._database.kind, "SELECT * FROM wallets WHERE id = ANY(:ids)"),
            {"ids": list_for(self._database.kind, [one.wallet_id for one in sums.values()])},
        )
        wallets = {row.id: read_wallet(row) for row in rows}
        now_ms = self._now_ms()
        for user_id, one in sums.items():  # in the order of their ids, as all replicas lock them
            wallet = wallets.get(one.wallet_id)
            await self._events.append(transaction, user_id, "usage", one.to_json(now_ms))
            if wallet is None:
                continue
            level = level_of(wallet)
            before = await self._events.change_level(transaction, user_id, level)
            if before is not None and level > before:
                await self._events.append(
                    transaction, user_id, "billing", low_credits(wallet, user_id, level)
                )

    def _put_back(self, user_id: str, one: _Sum) -> None:
        """Join sums that could not be told with what came meanwhile."""
        newer = self._sums.get(user_id)
        self._sums[user_id] = one
        if newer is None:
            return
        for name in ("requests", "tokens_in", "tokens_cached", "tokens_out", "charged_musd"):
            setattr(one, name, getattr(one, name) + getattr(newer, name))
        for model, count in newer.models.items():
            one.models[model] = one.models.get(model, 0) + count

    def _now_ms(self) -> int:
        return round(self._clock.now_s() * 1000)


def low_credits(wallet: Wallet, user_id: str, level: int) -> dict[str, Any]:
    """Return the data of the event that credits run low."""
    return {
        "kind": "low_credits",
        "percent_left": LOW_PERCENT[level - 1],
        "credits": wallet.credits(user_id),
    }
