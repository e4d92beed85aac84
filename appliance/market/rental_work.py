"""Works on rentals: asks their markets, decides by `rental_rules`, writes the row and its money, then acts.

Every step can be the last one before a crash: a row is written before its market is called, and what a call
has done is found again by a look. A step that fails is tried again when the row is due.
"""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Final, Protocol

from appliance.base.errors import Unavailable
from appliance.base.logs import get_logger
from appliance.market.billing_step import bring_money_up, is_hold_low
from appliance.market.launches import launch_of, offer_of
from appliance.market.listings import Listings, reason_of
from appliance.market.market_store import MarketStore
from appliance.market.money import RentalPayments
from appliance.market.rental_rules import AVOID_MS, decide, question_of
from appliance.market.rental_steps import NOT_KNOWN, RentalStep, Sight, after_create, after_destroy
from appliance.market.rental_store import RentalStore, RentalTakenOver, RentalTurn
from appliance.market.rental_types import Rental
from appliance.storage.database import Transaction

log = get_logger("market")
MAX_STEPS: Final = 6  # of one rental, before others have their turn
AT_ONCE: Final = 8
RETRY_MS: Final = 15_000  # after a step that failed
Decision = Callable[[Rental], RentalStep]


class RentalEvents(Protocol):
    """Where users and operators are told what happens."""

    async def append(
        self, transaction: Transaction, user_id: str | None, topic: str, data: Mapping[str, Any]
    ) -> int:
        """Tell something in the transaction of what it tells; `user_id` None = operators."""
        ...

    async def announce(self) -> None:
        """Wake who reads."""
        ...


class JoinedServers(Protocol):
    """Rented servers that answer requests of a pool."""

    async def leave(self, rental: Rental) -> bool:
        """Give a server no new requests; return whether it answers none any more."""
        ...


class RentalWork:
    """Works on rentals, for one process.

    Args:
        store: Their rows.
        market: What holds for all.
        payments: Wallets.
        listings: The markets.
        events: Where it is told; None = nowhere.
        joined: Servers that answer requests; None = there are none.
        on_step: Called between any two steps, for tests that end a process there.
    """

    def __init__(
        self,
        store: RentalStore,
        market: MarketStore,
        payments: RentalPayments,
        listings: Listings,
        *,
        events: RentalEvents | None = None,
        joined: JoinedServers | None = None,
        on_step: Callable[[], None] = lambda: None,
    ) -> None:
        self.store = store
        self.market = market
        self.payments = payments
        self.listings = listings
        self.on_step = on_step
        self._events = events
        self._joined = joined
        self._failed_starts: list[Rental] = []

    def take_failed_starts(self) -> list[Rental]:
        """Return the rentals that did not start and were not returned before; another offer may be tried."""
        failed, self._failed_starts = self._failed_starts, []
        return failed

    # ---- when

    async def look(self, provider: str = "") -> int:
        """Work on every rental that is due; return how many were.

        Args:
            provider: At this market alone, so that one that does not answer delays no other; "" = at all.
        """
        due = await self.store.due(provider=provider)
        places = asyncio.Semaphore(AT_ONCE)

        async def look_at(rental_id: str) -> None:
            async with places:
                await self.work_on(rental_id)

        await asyncio.gather(*(look_at(rental_id) for rental_id in due))
        return len(due)

    async def work_on(self, rental_id: str) -> Rental | None:
        """Work on one rental as far as it goes now; None = another process does, or it has ended.

        What fails is logged and tried again later; nothing is raised but for the database.
        """
        taken = await self.store.take(rental_id)
        if taken is None:
            return None
        return await self.continue_with(*taken)

    async def continue_with(self, rental: Rental, turn: RentalTurn) -> Rental:
        """Work on a rental that was taken over, and let it go."""
        try:
            for _ in range(MAX_STEPS):
                rental = await self.step(rental, turn)
                if rental.next_look_at is None or rental.next_look_at > self.store.now_ms():
                    break
            await self.store.let_go(turn)
        except RentalTakenOver:
            log.warning("rental_taken_over", rental=rental.id)
        except Unavailable as exc:
            log.warning("rental_not_written", rental=rental.id, reason=exc.message)
        except Exception as exc:
            log.exception("rental_step_failed", rental=rental.id, error=repr(exc))
            await self._postpone(turn)
        return rental

    async def _postpone(self, turn: RentalTurn) -> None:
        """Let a rental whose step failed wait, so that the others are not kept from theirs."""

        async def change(transaction: Transaction) -> None:
            rental = await self.store.lock_turn(transaction, turn)
            later = replace(rental, next_look_at=self.store.now_ms() + RETRY_MS, owner_until=0)
            await self.store.write(transaction, later if rental.is_live else rental)

        try:
            await self.store.database.run(change)
        except (RentalTakenOver, Unavailable):
            return

    # ---- one step

    async def step(self, rental: Rental, turn: RentalTurn) -> Rental:
        """Ask, decide, write, act.

        Raises:
            RentalTakenOver: Another process works on it by now.
            StoreUnavailable: The database is down.
        """
        sight = await self._sight_of(rental)
        is_drained = True
        if self._joined is not None and (rental.state == "draining" or rental.end_state):
            is_drained = await self._joined.leave(rental)
        now_ms = self.store.now_ms()
        done = await self.commit(turn, lambda row: decide(row, sight, now_ms, is_drained=is_drained))
        return await self.act(done, turn)

    async def act(self, step: RentalStep, turn: RentalTurn) -> Rental:
        """Do what a step that was written asks for, and write what came of it."""
        if step.call == "create":
            return await self.create(step.rental, turn)
        if step.call == "destroy":
            return await self.destroy(step.rental, turn)
        return step.rental

    async def create(self, rental: Rental, turn: RentalTurn, *, is_kept: bool = False) -> Rental:
        """Create the instance of a rental whose row says so; `is_kept`: see `after_create`."""
        self.on_step()
        outcome: str | Exception
        try:
            provider = self.listings.find(rental.provider)
            outcome = await provider.create(offer_of(rental), launch_of(rental))
        except Exception as exc:
            reason_of(exc)
            outcome = exc
        self.on_step()
        now_ms = self.store.now_ms()
        done = await self.commit(turn, lambda row: after_create(row, outcome, now_ms, is_kept=is_kept))
        return await self.act(done, turn)

    async def destroy(self, rental: Rental, turn: RentalTurn) -> Rental:
        """Destroy the instance of a rental whose row says so."""
        self.on_step()
        outcome: Exception | None = None
        try:
            await self.listings.find(rental.provider).destroy(rental.contract_id)
        except Exception as exc:
            reason_of(exc)
            outcome = exc
        self.on_step()
        now_ms = self.store.now_ms()
        return (await self.commit(turn, lambda row: after_destroy(row, outcome, now_ms))).rental

    async def _sight_of(self, rental: Rental) -> Sight:
        """Ask a rental's market what `question_of` says.

        An instance that is being destroyed is looked for in the listing where the market does not answer
        about it alone.
        """
        question = question_of(rental)
        if not question:
            return NOT_KNOWN
        provider = self.listings.providers.get(rental.provider)
        if provider is None:
            return replace(NOT_KNOWN, reason=f"{rental.provider} cannot be asked: it has no key any more.")
        if question == "get":
            try:
                return Sight(await provider.get(rental.contract_id))
            except Exception as exc:
                unknown = replace(NOT_KNOWN, reason=reason_of(exc))
            if rental.state != "destroying":
                return unknown
        try:
            found = [one for one in await self.listings.list(rental.provider) if _is_of(one, rental)]
        except Exception as exc:
            return replace(NOT_KNOWN, reason=reason_of(exc))
        return Sight(found[0] if found else None)

    # ---- writing

    async def commit(self, turn: RentalTurn, decision: Decision) -> RentalStep:
        """Decide on the row as it is now, and write what was decided, with its money, in one transaction."""

        async def change(transaction: Transaction) -> tuple[Rental, RentalStep]:
            rental = await self.store.lock_turn(transaction, turn)
            return rental, await self.write(transaction, rental, decision(rental))

        self.on_step()
        before, step = await self.store.database.run(change)
        self.on_step()
        await self.tell(step)
        if is_hold_low(step.rental, self.store.now_ms()):
            await self._reclaim(step.rental)
        if step.is_started is False:
            self._failed_starts.append(replace(step.rental, secrets=before.secrets))
        return step

    async def _reclaim(self, rental: Rental) -> None:
        """Ask for what processes do not use of a wallet: the next look holds more."""
        try:
            await self.payments.reclaim(rental.wallet_id)
        except Unavailable as exc:
            log.info("credits_not_reclaimed", reason=exc.message)

    async def write(self, transaction: Transaction, before: Rental, step: RentalStep) -> RentalStep:
        """Write a step of a row that is locked, its money and its events."""
        now_ms = self.store.now_ms()
        if step.is_started is not None:
            await self.market.note_start(transaction, step.is_started)
        if step.avoid and step.rental.machine_id:
            await self.market.avoid(
                transaction,
                step.rental.provider,
                step.rental.machine_id,
                until_ms=now_ms + AVOID_MS,
                reason=step.avoid,
            )
        step = await bring_money_up(transaction, self.payments, step, now_ms)
        if step.rental != before:
            await self.store.write(transaction, step.rental)
        if step.rental.charged_musd != before.charged_musd or step.rental.state != before.state:
            await self.store.note_usage(transaction, step.rental)
        if self._events is not None:
            for event in step.events:
                data = {"kind": event.kind, **event.details, "rental": step.rental.view()}
                if step.rental.user_id is not None:
                    await self._events.append(transaction, step.rental.user_id, "instances", data)
                if event.is_alarm:
                    await self._events.append(transaction, None, "system", data)
        return step

    async def tell(self, step: RentalStep) -> None:
        """Tell what was written."""
        rental = step.rental
        for event in step.events:
            write = log.warning if event.is_alarm else log.info
            write(
                event.kind.replace(".", "_"),
                rental=rental.id,
                provider=rental.provider,
                contract=rental.contract_id,
                reason=rental.end_reason,
            )
        if step.events and self._events is not None:
            await self._events.announce()


def _is_of(instance: Any, rental: Rental) -> bool:
    """Whether a listed instance is a rental's: by its contract, or by its label where that is not known."""
    if rental.contract_id:
        return bool(instance.contract_id == rental.contract_id)
    return bool(instance.label == rental.label)
