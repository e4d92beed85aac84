"""The money of one step of a rental: charges what is due, and sets aside what it needs next."""

from dataclasses import replace
from typing import Final

from appliance.base.rental_charges import Renter
from appliance.market.money import (
    DRAIN_MS,
    HOLD_MS,
    SETTLE_MS,
    RentalPayments,
    cost_until,
    is_settlement_due,
    next_charge,
    price_of,
    wanted_hold,
)
from appliance.market.rental_steps import RentalEvent, RentalStep, begin_end
from appliance.market.rental_types import Rental
from appliance.storage.database import Transaction

LOW_MS: Final = HOLD_MS - SETTLE_MS  # of time that is held for ahead: below it more is held
LEAST_MS: Final = SETTLE_MS + DRAIN_MS  # below it the rental ends


def renter_of(rental: Rental) -> Renter:
    """Return who pays for a rental."""
    return Renter(rental.user_id or "", rental.wallet_id, rental.key_id or "")


def is_hold_low(rental: Rental, now_ms: int) -> bool:
    """Whether a wallet did not have what a running rental needs for the next minutes."""
    if rental.state != "ready":
        return False
    return rental.held_musd < wanted_hold(rental, now_ms, ahead_ms=LOW_MS)


async def bring_money_up(
    transaction: Transaction, payments: RentalPayments, step: RentalStep, now_ms: int
) -> RentalStep:
    """Charge and hold what a step needs; it may end the rental.

    1. what it cost is charged, every 5 minutes and at its end
    2. what is held and not needed is given back
    3. its ceiling: told one hold ahead; reached a minute ahead → it ends
    4. what it needs for the next 15 minutes is held; where the wallet has less than for the next
       settlement → it ends
    """
    rental = step.rental
    if is_settlement_due(rental, now_ms):  # 1
        rental = await _charge(transaction, payments, rental, now_ms)
    wanted = wanted_hold(rental, now_ms)
    if rental.held_musd > wanted:  # 2
        await payments.release(transaction, renter_of(rental), rental.held_musd - wanted)
        rental = replace(rental, held_musd=wanted)
    step = replace(step, rental=rental)
    if rental.state != "ready":
        return step
    step = _check_ceiling(step, now_ms)  # 3
    if step.rental.state != "ready" or rental.held_musd >= wanted_hold(rental, now_ms, ahead_ms=LOW_MS):
        return step
    missing = wanted - rental.held_musd  # 4
    renter = renter_of(rental)
    funds = await payments.funds(transaction, renter)
    more = min(missing, funds.available_musd)
    if more > 0 and await payments.hold(transaction, renter, more):
        step = replace(step, rental=replace(step.rental, held_musd=rental.held_musd + more))
    if step.rental.held_musd >= min(wanted, wanted_hold(rental, now_ms, ahead_ms=LEAST_MS)):
        return step
    return _joined(step, begin_end(step.rental, "gone", funds.reason, now_ms))


def _joined(step: RentalStep, ending: RentalStep) -> RentalStep:
    return replace(
        step, rental=ending.rental, call=ending.call or step.call, events=(*step.events, *ending.events)
    )


def _check_ceiling(step: RentalStep, now_ms: int) -> RentalStep:
    """Tell that a ceiling comes near, and end the rental at it."""
    rental = step.rental
    if rental.max_cost_musd is None or rental.prepaid_hours:
        return step
    free = replace(rental, max_cost_musd=None)
    minute = price_of(rental.price_musd_per_h, DRAIN_MS)
    cost = cost_until(free, now_ms)
    if cost + minute >= rental.max_cost_musd:
        return _joined(step, begin_end(rental, "gone", "max_cost", now_ms))
    ahead = price_of(rental.price_musd_per_h, HOLD_MS)
    if cost + ahead >= rental.max_cost_musd and not rental.is_ceiling_told:
        event = RentalEvent("rental.ceiling_near", {})
        return replace(step, rental=replace(rental, is_ceiling_told=True), events=(*step.events, event))
    return step


async def _charge(transaction: Transaction, payments: RentalPayments, rental: Rental, now_ms: int) -> Rental:
    charge = next_charge(rental, now_ms)
    if charge is None:
        return rental
    paid = await payments.charge(transaction, charge)
    return replace(
        rental,
        held_musd=rental.held_musd - paid.from_hold_musd,
        cost_musd=rental.cost_musd + charge.cost_musd,
        charged_musd=rental.charged_musd + paid.charged_musd,
        supply_musd=rental.supply_musd + charge.supply_musd,
        gpu_seconds=rental.gpu_seconds + charge.gpu_seconds,
        settlements=rental.settlements + 1,
        settled_at=now_ms,
    )
