"""Whether a renter may rent; the rows, and what is held for them, are written in the same transaction."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Final, TypeVar

from appliance.base.errors import ApplianceError, Exhausted, PaymentRequired
from appliance.base.logs import get_logger
from appliance.base.money import format_dollars, to_dollars
from appliance.base.rental_charges import RentalFunds, Renter
from appliance.market.brake import LaunchLimits, refusal_of
from appliance.market.market_store import MarketStore
from appliance.market.money import RentalPayments
from appliance.market.rental_store import RentalStore
from appliance.market.rental_types import Rental
from appliance.storage.database import Transaction

log = get_logger("market")
ResultT = TypeVar("ResultT")
RECLAIM_S: Final = 0.25  # in which other processes give back what they were asked for
WORDS: Final = {
    "credits": "Your credits do not suffice",
    "spending_limit": "A limit on your spending does not allow it",
    "key_cap": "The cap of your API key does not allow it",
    "wallet_frozen": "Your wallet is frozen",
    "wallet_unknown": "You have no wallet",
}
CODES: Final = {
    "credits": "insufficient_credits",
    "spending_limit": "spending_limit",
    "key_cap": "spending_limit",
}


class RentalAdmission:
    """Lets rentals begin.

    Args:
        store: Their rows.
        market: What holds for all.
        payments: Wallets.
        limits: What the operator allows.
        pause: Waits so many seconds.
    """

    def __init__(
        self,
        store: RentalStore,
        market: MarketStore,
        payments: RentalPayments,
        limits: LaunchLimits,
        *,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._pause = pause
        self._store = store
        self._market = market
        self._payments = payments
        self._limits = limits

    async def admit(
        self, transaction: Transaction, renter: Renter, rentals: Sequence[Rental]
    ) -> list[Rental]:
        """Check the limits, hold the money of all rentals at once, and write their rows.

        They belong to this process from the begin.

        1. limits of the operator and of the user, and what stops launching
        2. the quota of GPU hours must have what their leases need
        3. one hold for all of them

        Raises:
            ApplianceError: Something does not allow it; nothing was written.
        """
        now = self._store.now_ms()
        use = await self._market.use(transaction, wallet_id=renter.wallet_id)
        wanted = [(rental.provider, rental.supply_musd_per_h) for rental in rentals]
        refusal = refusal_of(use, wanted, self._limits, now)  # 1
        if refusal is not None:
            raise refusal
        funds = await self._payments.funds(transaction, renter)
        seconds = sum(lease_gpu_seconds(rental) for rental in rentals)
        await self.check_quota(transaction, renter, funds, seconds)  # 2
        held = sum(rental.held_musd for rental in rentals)
        if held > funds.available_musd or not await self._payments.hold(transaction, renter, held):  # 3
            raise not_paid(funds, held)
        until = now + self._store.lease_ms
        owned = [replace(rental, owner=self._store.owner, owner_until=until, turn=1) for rental in rentals]
        for rental in owned:
            await self._store.insert(transaction, rental)
        return owned

    async def check_quota(
        self, transaction: Transaction, renter: Renter, funds: RentalFunds, seconds: int
    ) -> None:
        """Refuse what the quota of GPU hours does not have, what runs already counted in.

        Raises:
            Exhausted: `quota_exceeded`.
        """
        if funds.gpu_seconds_left is None or not renter.user_id:
            return
        promised = await self._market.leased_gpu_seconds(transaction, renter.user_id)
        left = funds.gpu_seconds_left - promised
        if seconds <= left:
            return
        wait_s = max(1.0, (funds.quota_ends_at - self._store.now_ms()) / 1000)
        raise Exhausted(
            f"{seconds / 3600:.2f} GPU hours are needed, and {max(0, left) / 3600:.2f} are left of this "
            "month's quota. Rent for a shorter time, or fewer.",
            code="quota_exceeded",
            retry_after_s=wait_s,
        )

    async def run(self, renter: Renter, change: Callable[[Transaction], Awaitable[ResultT]]) -> ResultT:
        """Run a transaction that admits; where credits are short, again after others gave back theirs."""
        try:
            return await self._store.database.run(change)
        except PaymentRequired as exc:
            if exc.code != "insufficient_credits":
                raise
            try:
                await self._payments.reclaim(renter.wallet_id)
                if self._store.database.can_listen:
                    await self._pause(RECLAIM_S)
            except ApplianceError as error:
                log.info("credits_not_reclaimed", reason=error.message)
                raise exc from None
            return await self._store.database.run(change)


def lease_gpu_seconds(rental: Rental) -> int:
    """Return the GPU time of a rental's whole lease."""
    return max(0, rental.lease_ends_at - rental.created_at) * rental.gpu_count // 1000


def not_paid(funds: RentalFunds, needed_musd: int) -> PaymentRequired:
    """Return what a renter is told who cannot pay."""
    words = WORDS.get(funds.reason, WORDS["credits"])
    return PaymentRequired(
        f"{words}: {format_dollars(needed_musd)} dollars are set aside for it first, and "
        f"{format_dollars(funds.available_musd)} can be.",
        code=CODES.get(funds.reason, funds.reason),
        details={
            "error_fields": {
                "needed": to_dollars(needed_musd),
                "available": to_dollars(funds.available_musd),
            }
        },
    )
