"""The steps of a rental: what its market shows, how it ends, what calls have done. Pure."""

from dataclasses import dataclass, replace
from typing import Any, Final, Literal

from appliance.base.errors import ApplianceError
from appliance.market.rental_types import Rental
from appliance.market.types import Instance, InstanceState, MarketRefused, OfferGone

FIRST_LOOK_MS: Final = 5_000
UNKNOWN_LOOK_MS: Final = 15_000
DESTROY_BACKOFF_MS: Final = (5_000, 10_000, 20_000, 40_000, 60_000)
MAX_TEXT: Final = 500
Call = Literal["", "create", "destroy"]


@dataclass(frozen=True, slots=True)
class Sight:
    """What a market says of a rental's instance.

    Attributes:
        instance: As it is; None = it is not there.
        is_known: Whether that is certain; the other attributes say nothing otherwise.
        reason: Why it is not.
    """

    instance: Instance | None = None
    is_known: bool = True
    reason: str = ""


NOT_KNOWN: Final = Sight(is_known=False)


@dataclass(frozen=True, slots=True)
class RentalEvent:
    """Something that its user, or operators, are told of a rental.

    Attributes:
        kind: `rental.ready` …
        is_alarm: Operators are told, too.
    """

    kind: str
    details: dict[str, Any]
    is_alarm: bool = False


@dataclass(frozen=True, slots=True)
class RentalStep:
    """What is to be done with a rental.

    Attributes:
        rental: Its row from now on.
        call: What its market is asked to do after the row was written.
        events: What is told.
        avoid: Why its machine is avoided from now on; "" = it is not.
        is_started: It has become ready (True), has failed to (False), or neither (None).
    """

    rental: Rental
    call: Call = ""
    events: tuple[RentalEvent, ...] = ()
    avoid: str = ""
    is_started: bool | None = None


def begin_end(
    rental: Rental, end_state: str, reason: str, now_ms: int, *, is_at_once: bool = False
) -> RentalStep:
    """Begin a rental's end.

    1. it ends already, or has ended   → nothing changes, but what drains may be destroyed at once
    2. it was not created              → it has ended
    3. whether it was created is not known → it ends when that is known
    4. it runs                         → it drains, or is destroyed

    Args:
        end_state: `gone` or `failed`.
        is_at_once: It is destroyed without draining.
    """
    if not rental.is_live or rental.state == "destroying":  # 1
        return RentalStep(rental)
    ending = replace(
        rental,
        end_state=rental.end_state or end_state,
        end_reason=rental.end_reason or reason,
        next_look_at=now_ms,
    )
    if rental.state == "wanted":  # 2
        return finish(ending, now_ms)
    if rental.state in ("creating", "unknown"):  # 3
        return RentalStep(ending)
    event = RentalEvent("rental.ending", {"reason": ending.end_reason})
    if is_at_once or rental.state == "starting":
        step = begin_destroying(ending, now_ms)
        return replace(step, events=(event, *step.events))
    if rental.state == "draining":
        return RentalStep(ending)
    return RentalStep(replace(ending, state="draining", draining_since=now_ms), events=(event,))  # 4


def begin_destroying(rental: Rental, now_ms: int) -> RentalStep:
    """Destroy a rental's instance; from now on its user does not pay any more."""
    since = rental.bad_since
    if since is None and rental.misses:  # at the last look it was not there
        since = rental.last_seen_at or now_ms
    until = now_ms if since is None else since
    called = replace(
        rental,
        state="destroying",
        destroying_since=now_ms,
        destroy_called_at=now_ms,
        destroy_calls=1,
        bad_since=since,
        misses=0,
        first_missed_at=None,
        billed_until=until if rental.billed_from is not None else None,
        next_look_at=now_ms,
    )
    return RentalStep(called, "destroy")


def finish(rental: Rental, now_ms: int, end_state: str = "", reason: str = "") -> RentalStep:
    """End a rental for good: nothing of it runs.

    Args:
        end_state: Where none was decided before.
        reason: Likewise.
    """
    state = rental.end_state or end_state or "failed"
    until = rental.billed_until
    if until is None and rental.billed_from is not None:
        until = rental.last_seen_at or rental.billed_from  # what was not seen is not paid
    counted = _supplied_to_destruction(rental)
    ended = replace(
        rental,
        state=state,
        end_state=state,
        end_reason=rental.end_reason or reason,
        billed_until=until,
        supplied_from=counted.supplied_from,
        supplied_until=counted.supplied_until,
        ended_at=now_ms,
        next_look_at=None,
        secrets="{}",
        alarm="lost" if state == "lost" else "",
    )
    details = {"reason": ended.end_reason}
    return RentalStep(ended, events=(RentalEvent(f"rental.{state}", details, is_alarm=state == "lost"),))


def ask_end(rental: Rental, end_state: str, reason: str, now_ms: int) -> Rental:
    """Note that a rental is to end; the process that works on it does the rest."""
    if not rental.is_live or rental.end_state:
        return rental
    return replace(rental, end_state=end_state, end_reason=reason, next_look_at=now_ms)


def roll_back(rental: Rental, now_ms: int) -> RentalStep:
    """Give back one instance of a reservation; its user pays nothing for it."""
    free = replace(rental, billed_from=None, billed_until=None)
    return begin_end(free, "failed", "rolled_back", now_ms, is_at_once=True)


def after_create(
    rental: Rental, outcome: str | Exception, now_ms: int, *, is_kept: bool = False
) -> RentalStep:
    """Decide what the answer to the call that creates means.

    1. the contract's id      → it starts
    2. another customer has it, or the market refuses → nothing was created, and it has failed
    3. anything else          → it may have been created

    Args:
        is_kept: In 2 it stays, to be created from another offer.
    """
    if rental.state != "creating":  # it was looked for meanwhile
        return RentalStep(rental)
    if isinstance(outcome, str) and outcome:  # 1
        begun = replace(rental, state="starting", contract_id=outcome, next_look_at=now_ms + FIRST_LOOK_MS)
        if begun.end_state:
            return begin_end(begun, begun.end_state, begun.end_reason, now_ms, is_at_once=True)
        return RentalStep(begun, events=(RentalEvent("rental.starting", {}),))
    text = text_of(outcome)
    if isinstance(outcome, OfferGone | MarketRefused):  # 2
        code = outcome.code or ""
        if is_kept and not rental.end_state:
            return RentalStep(replace(rental, state="wanted", create_called_at=None, last_error=text))
        return finish(replace(rental, last_error=text), now_ms, "failed", code)
    return RentalStep(  # 3
        replace(rental, state="unknown", last_error=text, next_look_at=now_ms + UNKNOWN_LOOK_MS)
    )


def after_destroy(rental: Rental, outcome: Exception | None, now_ms: int) -> RentalStep:
    """Decide what the answer to the call that destroys means; only a look tells whether it is gone."""
    if rental.state != "destroying":
        return RentalStep(rental)
    if outcome is None:
        rental = _supplied_to_destruction(rental)
    text = rental.last_error if outcome is None else text_of(outcome)
    look_ms = 0 if outcome is None else backoff_ms(rental.destroy_calls)
    return RentalStep(replace(rental, last_error=text, next_look_at=now_ms + look_ms))


def _supplied_to_destruction(rental: Rental) -> Rental:
    """Count what the market asks of us up to the call that destroyed the instance.

    That is the first one that was answered after the instance was last seen; where none was, the last one.
    An instance that the market has never shown is counted from its creation, since it may have run.
    """
    called, seen_ms = rental.destroy_called_at, rental.last_seen_at
    if called is None or not rental.contract_id or rental.bad_since is not None:
        return rental
    begun, until = rental.supplied_from, rental.supplied_until
    if seen_ms is None and begun is None:
        begun = rental.create_called_at
    if begun is None or (until is not None and until > (seen_ms or 0)):
        return rental
    return replace(rental, supplied_from=begun, supplied_until=called)


def text_of(error: Any) -> str:
    """Return a failure as a rental's row keeps it."""
    if isinstance(error, ApplianceError):
        return error.message[:MAX_TEXT]
    return (type(error).__name__ if isinstance(error, Exception) else "no contract id")[:MAX_TEXT]


def backoff_ms(calls: int) -> int:
    """Return how long after so many calls that destroy the next one is made."""
    return 0 if calls == 0 else DESTROY_BACKOFF_MS[min(calls, len(DESTROY_BACKOFF_MS)) - 1]


def noted(rental: Rental, reason: str, look_at: int | None) -> Rental:
    """Keep why the market does not say."""
    return replace(rental, last_error=reason[:MAX_TEXT] or rental.last_error, next_look_at=look_at)


def missed_once(rental: Rental, now_ms: int) -> Rental:
    """Note that a complete answer lacks the instance."""
    first = rental.first_missed_at if rental.misses else None
    if first is None or first > now_ms:
        first = now_ms
    return replace(rental, misses=rental.misses + 1, first_missed_at=first)


def is_missing(rental: Rental, now_ms: int, apart_ms: int) -> bool:
    """Whether two such answers, so far apart, lack it."""
    first = rental.first_missed_at
    return rental.misses >= 2 and first is not None and now_ms - first >= apart_ms


def seen_again(rental: Rental, instance: Instance, now_ms: int) -> Rental:
    """Note what the market shows.

    The user pays from when it ran: by the market's clock where that lies between an earlier look, at which
    it did not run, and now; else from now. What the market asks of us is counted from the earlier look then,
    since some tell when an instance was created, and not when it ran.
    """
    since = rental.last_seen_at or rental.create_called_at or rental.created_at
    told = instance.started_ms
    is_running = instance.state is InstanceState.RUNNING
    billed, supplied, clock = rental.billed_from, rental.supplied_from, rental.clock
    if is_running and billed is None and not rental.end_state:
        if rental.last_seen_at is not None and told is not None and since <= told <= now_ms:
            billed, clock = told, "provider"
        else:
            billed, clock = now_ms, "ours"
    if is_running and supplied is None:
        supplied = billed if clock == "provider" else since
    return replace(
        rental,
        last_seen_at=now_ms,
        supplied_from=supplied,
        supplied_until=now_ms if is_running else rental.supplied_until,  # what has stopped bills its disk
        billed_from=billed,
        clock=clock,
        misses=0,
        first_missed_at=None,
        market_status=instance.market_status[:100],
        host=instance.host[:255] or rental.host,
        machine_id=rental.machine_id or instance.machine_id[:100],
        paid_musd=instance.paid_musd or rental.paid_musd,
        ports=_ports_text(instance) or rental.ports,
    )


def _ports_text(instance: Instance) -> str:
    pairs = ", ".join(f'"{inner}": {outer}' for inner, outer in sorted(instance.ports.items())[:64])
    return f"{{{pairs}}}" if pairs else ""
