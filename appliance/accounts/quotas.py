"""Quotas of requests per month: taken from the database in blocks, so that a request does not wait for it."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from appliance.accounts.renewals import next_period_end_ms
from appliance.accounts.settlement import AttemptIds
from appliance.base.clock import Clock, format_rfc3339
from appliance.base.errors import Exhausted, Unavailable
from appliance.storage.database import Database, StoreUnavailable, Transaction
from appliance.storage.statements import statement_for

LONGEST_WAIT_S = 5.0  # of a request for the database
BLOCKS = 100  # a block is a hundredth of the quota


@dataclass(slots=True)
class _QuotaBlock:
    """Requests that this process may let pass.

    Attributes:
        left: So many.
        ends_ms: When the month ends, epoch milliseconds; 0 = nothing is known.
        is_unlimited: There is no quota.
    """

    left: int = 0
    ends_ms: int = 0
    is_unlimited: bool = False


class RequestQuotas:
    """The request quotas of all users, for one process.

    Args:
        database: Where they are.
        clock: The time.
        max_requests: Of a user who has no row yet; 0 = no limit.
        max_gpu_seconds: The same, of rented GPUs.
    """

    def __init__(
        self, database: Database, clock: Clock, *, max_requests: int = 10_000, max_gpu_seconds: int = 360_000
    ) -> None:
        self._database = database
        self._clock = clock
        self._max_requests = max_requests
        self._max_gpu_seconds = max_gpu_seconds
        self._ids = AttemptIds()
        self._blocks: dict[str, _QuotaBlock] = {}
        self._owed: Counter[str] = Counter()  # passed while the database was down, and not counted yet

    def _now_ms(self) -> int:
        return int(self._clock.now_s() * 1000)

    def try_take(self, user_id: str) -> bool:
        """Count a request without waiting; False = `take` has to ask the database."""
        block = self._blocks.get(user_id)
        if block is None or self._now_ms() >= block.ends_ms:
            return False
        if block.is_unlimited:
            return True
        if block.left <= 0:
            return False
        block.left -= 1
        return True

    async def take(self, user_id: str) -> None:
        """Count a request. While the database is down another block may pass; it is counted later.

        Raises:
            Exhausted: The quota of the month is used up (`quota_exceeded`).
            Unavailable: The database takes too long.
            ApplianceError: The database cannot be asked, and a block was used without it.
        """
        if self.try_take(user_id):
            return
        owed = self._owed[user_id]
        try:
            async with asyncio.timeout(LONGEST_WAIT_S):
                block = await self._database.run(
                    lambda transaction: self._take_block(transaction, user_id, owed=owed)
                )
        except TimeoutError:
            raise Unavailable(
                "The database of accounts takes too long. Try again later.",
                code="store_unavailable",
                retry_after_s=LONGEST_WAIT_S,
            ) from None
        except StoreUnavailable:
            if self._owed[user_id] >= max(1, self._max_requests // BLOCKS):
                raise
            self._owed[user_id] += 1
            return
        self._owed[user_id] -= owed
        if not block.is_unlimited and block.left <= 0:
            end = format_rfc3339(block.ends_ms / 1000)
            raise Exhausted(
                f"The quota of requests of this month is used up; it begins anew at {end}.",
                code="quota_exceeded",
                retry_after_s=max(1.0, (block.ends_ms - self._now_ms()) / 1000),
            )
        known = self._blocks.get(user_id)
        if known is not None and known.ends_ms == block.ends_ms:
            block.left += max(0, known.left)  # another request has asked meanwhile
        block.left -= 1
        self._blocks[user_id] = block

    async def _row(self, transaction: Transaction, user_id: str) -> Any:
        """Return a user's row, locked, of the month that it is now; a new user gets one."""
        now = self._now_ms()
        end = next_period_end_ms(1, now)
        await transaction.execute(
            "INSERT INTO usage_quotas(id, user_id, max_requests, max_gpu_seconds, reset_at, created_at, "
            "updated_at) VALUES (:id, :user, :requests, :seconds, :end, :now, :now) "
            "ON CONFLICT (user_id) DO NOTHING",
            {
                "id": self._ids.new(now),
                "user": user_id,
                "requests": self._max_requests,
                "seconds": self._max_gpu_seconds,
                "end": end,
                "now": now,
            },
        )
        await transaction.execute(
            "UPDATE usage_quotas SET used_requests = 0, used_gpu_seconds = 0, reset_at = :end, "
            "updated_at = :now WHERE user_id = :user AND reset_at <= :now",
            {"end": end, "now": now, "user": user_id},
        )
        rows = await transaction.execute(
            statement_for(self._database.kind, "SELECT * FROM usage_quotas WHERE user_id = :user FOR UPDATE"),
            {"user": user_id},
        )
        return rows[0]

    async def _take_block(self, transaction: Transaction, user_id: str, *, owed: int) -> _QuotaBlock:
        """Take a block, and what passed while the database was down."""
        row = await self._row(transaction, user_id)
        size = max(1, row.max_requests // BLOCKS) + owed
        granted = size if row.max_requests == 0 else max(0, min(size, row.max_requests - row.used_requests))
        if granted and row.max_requests:
            await transaction.execute(
                "UPDATE usage_quotas SET used_requests = used_requests + :n WHERE user_id = :user",
                {"n": granted, "user": user_id},
            )
        return _QuotaBlock(granted - owed, row.reset_at, row.max_requests == 0)

    async def view(self, user_id: str) -> dict[str, Any]:
        """Return a user's quotas for JSON; requests of blocks that are taken count as used."""
        row = await self._database.run(lambda transaction: self._row(transaction, user_id))
        return {
            "max_requests": row.max_requests,
            "used_requests": row.used_requests,
            "max_gpu_hours": round(row.max_gpu_seconds / 3600, 2),
            "used_gpu_hours": round(row.used_gpu_seconds / 3600, 2),
            "reset_at": format_rfc3339(row.reset_at / 1000),
            "reset_interval": row.reset_interval,
        }

    async def gpu_seconds_left(self, transaction: Transaction, user_id: str) -> tuple[int | None, int]:
        """Return what is left of a user's GPU time in this month, and when that ends.

        The user's row stays locked until the transaction ends.

        Returns:
            (seconds, None = no limit; epoch milliseconds).
        """
        row = await self._row(transaction, user_id)
        left = max(0, row.max_gpu_seconds - row.used_gpu_seconds) if row.max_gpu_seconds else None
        return left, row.reset_at

    async def add_gpu_seconds(self, transaction: Transaction, user_id: str, seconds: int) -> None:
        """Count GPU time that was used; it is never refused."""
        await self._row(transaction, user_id)
        await transaction.execute(
            "UPDATE usage_quotas SET used_gpu_seconds = used_gpu_seconds + :n WHERE user_id = :user",
            {"n": seconds, "user": user_id},
        )

    async def set_max(
        self,
        user_id: str,
        *,
        max_requests: int,
        alongside: Callable[[Transaction, int], Awaitable[None]] | None = None,
    ) -> None:
        """Set how many requests a user can make in a month; 0 = no limit.

        Args:
            user_id: The user.
            max_requests: At least 0.
            alongside: Called in the same transaction, with how many it was before.
        """

        async def change(transaction: Transaction) -> None:
            row = await self._row(transaction, user_id)
            if alongside is not None:
                await alongside(transaction, row.max_requests)
            await transaction.execute(
                "UPDATE usage_quotas SET max_requests = :n WHERE user_id = :user",
                {"n": max_requests, "user": user_id},
            )

        await self._database.run(change)
        self._blocks.pop(user_id, None)

    async def close(self) -> None:
        """Give back what is left of the blocks."""
        blocks, self._blocks = self._blocks, {}
        for user_id, block in sorted(blocks.items()):
            if block.left <= 0 or block.is_unlimited:
                continue
            parameters = {"n": block.left, "user": user_id, "end": block.ends_ms}

            async def change(transaction: Transaction, parameters: dict[str, Any] = parameters) -> None:
                await transaction.execute(
                    statement_for(
                        self._database.kind,
                        "UPDATE usage_quotas SET used_requests = GREATEST(0, used_requests - :n) "
                        "WHERE user_id = :user AND reset_at = :end",
                    ),
                    parameters,
                )

            await self._database.run(change)
