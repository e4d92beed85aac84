"""What rentals need of wallets, and what a rental costs. Amounts are whole micro-dollars.

What is held for a rental stands in its row (`held_musd`) and in its wallet (`leased_musd`); both change in
one transaction. The user pays for the time from which it ran until its end was begun, as far as the market
showed it; the market's own price is counted until it is gone.
"""

from typing import Final, Protocol

from appliance.base.rental_charges import RentalCharge, RentalFunds, RentalPaid, Renter
from appliance.market.rental_types import MS_PER_H, Rental
from appliance.storage.database import Transaction

HOLD_MS: Final = 15 * 60_000
SETTLE_MS: Final = 5 * 60_000
DRAIN_MS: Final = 60_000


class RentalPayments(Protocol):
    """Wallets, as rentals use them; each call belongs to the transaction that changes the rental."""

    async def funds(self, transaction: Transaction, renter: Renter) -> RentalFunds:
        """Return what a renter has; until the transaction ends no other one changes it."""
        ...

    async def hold(self, transaction: Transaction, renter: Renter, musd: int) -> bool:
        """Set aside so much of a wallet; False = it does not have it. Ask `funds` first."""
        ...

    async def release(self, transaction: Transaction, renter: Renter, musd: int) -> None:
        """Give back what was set aside."""
        ...

    async def charge(self, transaction: Transaction, charge: RentalCharge) -> RentalPaid:
        """Charge a span of a rental's time."""
        ...

    async def book_supply(
        self, transaction: Transaction, provider: str, ref: str, musd: int, *, at_ms: int, note: str
    ) -> None:
        """Note what a market takes for an instance that no user pays for; once for each `ref`."""
        ...

    async def reclaim(self, wallet_id: str) -> None:
        """Ask all processes for what they have set aside of a wallet and do not use."""
        ...


def price_of(musd_per_h: int, ms: int) -> int:
    """Return what so many milliseconds cost, rounded up."""
    return -(-musd_per_h * max(0, ms) // MS_PER_H)


def billed_ms(rental: Rental, until_ms: int) -> int:
    """Return for how long the user pays, up to a time."""
    if rental.billed_from is None:
        return 0
    end = until_ms if rental.billed_until is None else min(until_ms, rental.billed_until)
    return max(0, end - rental.billed_from)


def whole_price(rental: Rental) -> int:
    """Return what a rental that is paid ahead costs in all."""
    return rental.price_musd_per_h * rental.prepaid_hours


def cost_until(rental: Rental, until_ms: int) -> int:
    """Return what a rental costs its user up to a time, from its beginning.

    1. it never ran              → nothing
    2. paid ahead, and it ended as asked → the whole, or the part of it that the market keeps
    3. paid ahead                → by time, at most the whole
    4. otherwise                 → by time
    Never more than its ceiling.
    """
    if rental.billed_from is None:  # 1
        return 0
    cost = price_of(rental.price_musd_per_h, billed_ms(rental, until_ms))
    if rental.prepaid_hours:
        whole = whole_price(rental)
        cost = min(cost, whole)  # 3
        if rental.end_state == "gone" and rental.billed_until is not None:  # 2
            asked = rental.supply_musd_per_h * rental.prepaid_hours
            kept = min(rental.paid_musd, asked) if rental.paid_musd else asked
            cost = max(cost, -(-whole * kept // asked) if asked else whole)
    return cost if rental.max_cost_musd is None else min(cost, rental.max_cost_musd)


def supply_until(rental: Rental, until_ms: int) -> int:
    """Return what the market asks of us up to a time, from the rental's beginning."""
    if rental.prepaid_hours:
        if not rental.contract_id:
            return 0
        whole = rental.paid_musd or rental.supply_musd_per_h * rental.prepaid_hours
        if not rental.is_live or rental.supplied_from is None:
            return whole
        return min(whole, price_of(rental.supply_musd_per_h, until_ms - rental.supplied_from))
    if rental.supplied_from is None:
        return 0
    end = until_ms if rental.supplied_until is None else min(until_ms, rental.supplied_until)
    return price_of(rental.supply_musd_per_h, end - rental.supplied_from)


def first_hold(price_musd_per_h: int, prepaid_hours: int, max_cost_musd: int | None) -> int:
    """Return what is held before anything is rented: 15 minutes, or the whole of what is paid ahead."""
    if prepaid_hours:
        musd = price_musd_per_h * prepaid_hours
    else:
        musd = price_of(price_musd_per_h, HOLD_MS)
    return musd if max_cost_musd is None else min(musd, max_cost_musd)


def wanted_hold(rental: Rental, now_ms: int, *, ahead_ms: int = HOLD_MS) -> int:
    """Return what should be held for a rental now.

    1. its end was begun   → what it cost and was not charged yet
    2. paid ahead          → what is left of the whole
    3. it does not run yet → the first hold
    4. it runs             → what it cost and was not charged yet, and `ahead_ms` more, but not beyond its
        lease and the time in which it ends
    """
    if not rental.is_live or rental.state == "destroying":  # 1
        return max(0, cost_until(rental, now_ms) - rental.cost_musd)
    if rental.end_reason == "rolled_back":
        return 0
    most = None if rental.max_cost_musd is None else max(0, rental.max_cost_musd - rental.cost_musd)
    if rental.prepaid_hours:  # 2
        musd = max(0, whole_price(rental) - rental.cost_musd)
    elif rental.billed_from is None:  # 3
        musd = price_of(rental.price_musd_per_h, ahead_ms)
    else:  # 4
        ends_at = rental.lease_ends_at if rental.draining_since is None else rental.draining_since
        left_ms = max(0, ends_at + DRAIN_MS - now_ms)
        open_musd = max(0, cost_until(rental, now_ms) - rental.cost_musd)
        musd = open_musd + price_of(rental.price_musd_per_h, min(ahead_ms, left_ms))
    return musd if most is None else min(musd, most)


def is_settlement_due(rental: Rental, now_ms: int) -> bool:
    """Whether what it cost is to be charged now: every 5 minutes, and whenever the user's time is over."""
    since = rental.settled_at or rental.billed_from or rental.supplied_from
    if since is None:
        return rental.prepaid_hours > 0 and not rental.is_live
    return not rental.is_live or now_ms - since >= SETTLE_MS or has_open_end(rental)


def has_open_end(rental: Rental) -> bool:
    """Whether the user's time is over, and not all of it was charged."""
    until = rental.billed_until
    return until is not None and cost_until(rental, until) > rental.cost_musd


def next_charge(rental: Rental, now_ms: int) -> RentalCharge | None:
    """Return what a rental cost while the market showed it and was not charged yet; None = nothing."""
    seen_ms = now_ms if not rental.is_live else max(rental.last_seen_at or 0, rental.billed_until or 0)
    until_ms = min(now_ms, seen_ms)
    if not rental.is_live and rental.billed_until is None and rental.last_seen_at is not None:
        until_ms = rental.last_seen_at
    cost = max(0, cost_until(rental, until_ms) - rental.cost_musd)
    supply = max(0, supply_until(rental, now_ms) - rental.supply_musd)
    seconds = billed_ms(rental, until_ms) * rental.gpu_count // 1000
    more = max(0, seconds - rental.gpu_seconds)
    if not cost and not supply:
        return None
    return RentalCharge(
        ref=f"{rental.id}:{rental.settlements + 1}",
        at_ms=now_ms,
        renter=Renter(rental.user_id or "", rental.wallet_id, rental.key_id or ""),
        provider=rental.provider,
        gpu_name=rental.gpu_name,
        instance_id=rental.contract_id or rental.offer_id,
        held_musd=rental.held_musd,
        cost_musd=cost,
        supply_musd=supply,
        gpu_seconds=more,
        clock=rental.clock,
    )
