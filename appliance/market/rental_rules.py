"""What happens to a rental next: decided from its row, what its market says, and the time. Pure.

    wanted → creating → starting → ready → draining → destroying → gone | failed | lost
                  ↘ unknown ↗

A market that does not answer changes nothing: no rental is given up, none is thought to be gone. An instance
is gone when its market has said so twice, some time apart.
"""

from dataclasses import replace
from typing import Final, Literal

from appliance.market.money import DRAIN_MS
from appliance.market.rental_steps import (
    FIRST_LOOK_MS,
    MAX_TEXT,
    UNKNOWN_LOOK_MS,
    RentalEvent,
    RentalStep,
    Sight,
    backoff_ms,
    begin_destroying,
    begin_end,
    finish,
    is_missing,
    missed_once,
    noted,
    seen_again,
)
from appliance.market.rental_types import Rental
from appliance.market.types import Instance, InstanceState

LOOK_FOR_MS: Final = 180_000  # for the label of an instance that may have been created
MISS_MS: Final = 60_000  # between the answers that say that it is not there
GONE_MS: Final = 10_000  # the same, once it was destroyed
BAD_MS: Final = 60_000  # so long an instance may be stopped, failed or offline
STUCK_MS: Final = 600_000
AVOID_MS: Final = 24 * 3_600_000
WARNINGS_S: Final = (600, 120)
START_LOOK_MS: Final = 10_000
READY_LOOK_MS: Final = 30_000
DRAIN_LOOK_MS: Final = 5_000
MAX_START_TRIES: Final = 3
Question = Literal["", "get", "list"]


def question_of(rental: Rental) -> Question:
    """Return what a rental's market has to be asked before anything can be decided."""
    if rental.state == "wanted" or not rental.is_live:
        return ""
    if rental.state in ("creating", "unknown") or not rental.contract_id:
        return "list"
    return "get"


def decide(rental: Rental, sight: Sight, now_ms: int, *, is_drained: bool = True) -> RentalStep:
    """Decide what happens to a rental next.

    1. it has ended, or is to be created      → nothing, or the call; where the process that was to call has
        ended, and its caller has no key to ask again with, it is given up: what a caller does not know of is
        not created later
    2. whether it was created is not known    → look for its label
    3. its end was begun                      → until the market says that it is gone
    4. it runs or starts                      → see `_decide_running`

    Args:
        rental: Its row.
        sight: The answer to `question_of`.
        now_ms: The time.
        is_drained: No request is answered by it any more.
    """
    if not rental.is_live:  # 1
        return RentalStep(rental)
    if rental.state == "wanted":
        if rental.end_state:
            return finish(rental, now_ms)
        if rental.turn > 1 and rental.idempotency_key is None and rental.replaces is None:
            return finish(rental, now_ms, "failed", "abandoned")
        called = replace(rental, state="creating", create_called_at=now_ms, next_look_at=now_ms)
        return RentalStep(called, "create")
    if rental.state in ("creating", "unknown"):  # 2
        return _look_for_label(rental, sight, now_ms)
    if rental.state == "destroying":  # 3
        return _decide_destroying(rental, sight, now_ms)
    return _decide_running(rental, sight, now_ms, is_drained=is_drained)  # 4


def _look_for_label(rental: Rental, sight: Sight, now_ms: int) -> RentalStep:
    """Decide about a rental that may have been created.

    1. the market does not say            → look again
    2. its label is there                 → it is adopted, or destroyed where its end was asked for
    3. it is not there, and was not there a minute before, three minutes after the call → it failed
    4. it is not there                    → look again
    """
    rental = replace(rental, state="unknown")
    if not sight.is_known:  # 1
        return RentalStep(noted(rental, sight.reason, now_ms + UNKNOWN_LOOK_MS))
    if sight.instance is not None:  # 2
        return adopt(rental, sight.instance, now_ms)
    missed = missed_once(rental, now_ms)
    looked_ms = now_ms - (rental.create_called_at or rental.created_at)
    if is_missing(missed, now_ms, MISS_MS) and looked_ms >= LOOK_FOR_MS:  # 3
        return finish(missed, now_ms, "failed", "not_created")
    return RentalStep(replace(missed, next_look_at=now_ms + UNKNOWN_LOOK_MS))  # 4


def adopt(rental: Rental, instance: Instance, now_ms: int) -> RentalStep:
    """Take an instance that was found by its label as the rental's."""
    found = replace(
        seen_again(rental, instance, now_ms),
        state="starting",
        contract_id=instance.contract_id,
        next_look_at=now_ms,
    )
    if found.end_state:
        return begin_end(found, found.end_state, found.end_reason, now_ms, is_at_once=True)
    return RentalStep(found, events=(RentalEvent("rental.adopted", {}),))


def _decide_running(rental: Rental, sight: Sight, now_ms: int, *, is_drained: bool) -> RentalStep:
    """Decide about a rental that starts, is ready or drains.

    1. its end was asked for, or it has drained     → destroy
    2. the market does not say                      → only the end of its lease counts
    3. it is not there twice                        → lost, or failed where it never ran
    4. it has ended by itself                       → the same
    5. it is stopped or failed for a minute, or does not start in time → destroy, avoid its machine
    6. it runs                                      → ready
    7. the lease ends                               → drain; warnings before that
    """
    if rental.state == "draining":  # 1
        rental = rental if sight.instance is None else seen_again(rental, sight.instance, now_ms)
        since_ms = now_ms - (rental.draining_since or now_ms)
        if is_drained or since_ms >= DRAIN_MS:
            return begin_destroying(rental, now_ms)
        return RentalStep(replace(rental, next_look_at=now_ms + DRAIN_LOOK_MS))
    if rental.end_state:
        return begin_end(rental, rental.end_state, rental.end_reason, now_ms)
    step = RentalStep(rental)
    if not sight.is_known:  # 2
        look_ms = UNKNOWN_LOOK_MS
        step = RentalStep(noted(rental, sight.reason, now_ms + look_ms))
    elif sight.instance is None or sight.instance.state is InstanceState.ENDED:
        missed = missed_once(rental, now_ms)
        is_gone = sight.instance is not None or is_missing(missed, now_ms, MISS_MS)
        if is_gone:  # 3, 4
            return _vanish(missed, now_ms)
        step = RentalStep(replace(missed, next_look_at=now_ms + START_LOOK_MS))
    else:
        step = _decide_seen(seen_again(rental, sight.instance, now_ms), sight.instance.state, now_ms)  # 5, 6
        if step.rental.state in ("draining", "destroying"):
            return step
    if now_ms >= step.rental.lease_ends_at:  # 7
        ended = begin_end(step.rental, "gone", "lease_ended", now_ms)
        return replace(ended, events=step.events + ended.events, is_started=step.is_started)
    return _warned(step, now_ms)


def _decide_seen(rental: Rental, state: InstanceState, now_ms: int) -> RentalStep:
    """Decide about an instance that the market shows; see `_decide_running`."""
    is_starting = rental.state == "starting"
    if state is InstanceState.RUNNING:  # 6
        rental = replace(rental, bad_since=None, next_look_at=now_ms + READY_LOOK_MS)
        if not is_starting:
            return RentalStep(rental)
        begun = replace(
            rental,
            state="ready",
            ready_at=now_ms,
            next_look_at=now_ms + FIRST_LOOK_MS,
        )
        return RentalStep(begun, events=(RentalEvent("rental.ready", {}),), is_started=True)
    is_bad = not is_starting or state in (InstanceState.FAILED, InstanceState.STOPPED)
    since = (rental.bad_since or now_ms) if is_bad else None
    rental = replace(rental, bad_since=since, next_look_at=now_ms + START_LOOK_MS)
    if since is not None and now_ms - since >= BAD_MS:  # 5
        reason = "start_failed" if is_starting else "instance_failed"
        return _give_up(rental, reason, now_ms)
    if is_starting and now_ms >= rental.start_deadline_at:
        return _give_up(rental, "start_timeout", now_ms)
    return RentalStep(rental)


def _give_up(rental: Rental, reason: str, now_ms: int) -> RentalStep:
    """Destroy an instance that does not run; its machine is avoided."""
    error = f"{reason}: the market says {rental.market_status!r}"[:MAX_TEXT]
    is_starting = rental.state == "starting"
    ended = begin_end(replace(rental, last_error=error), "failed", reason, now_ms, is_at_once=True)
    return replace(ended, avoid=reason, is_started=False if is_starting else None)


def _vanish(rental: Rental, now_ms: int) -> RentalStep:
    """End a rental whose instance is gone without our doing."""
    is_starting = rental.state == "starting"
    state, reason = ("failed", "start_lost") if is_starting else ("lost", "lost")
    ended = finish(replace(rental, end_state=""), now_ms, state, reason)
    return replace(ended, avoid=reason, is_started=False if is_starting else None)


def _decide_destroying(rental: Rental, sight: Sight, now_ms: int) -> RentalStep:
    """Decide about a rental that is being destroyed.

    1. the market has said twice that it is gone, or that it has ended → it has ended
    2. it was not there once       → look again in ten seconds
    3. it is still there, or the market does not say → destroy it again, less and less often
    After ten minutes there is an alarm, and it goes on.
    """
    events: tuple[RentalEvent, ...] = ()
    if sight.is_known:
        if sight.instance is None:
            rental = missed_once(rental, now_ms)
        elif sight.instance.state is not InstanceState.ENDED:
            rental = seen_again(rental, sight.instance, now_ms)
        else:
            paid = sight.instance.paid_musd or rental.paid_musd
            return finish(replace(rental, paid_musd=paid), now_ms)
        if sight.instance is None and is_missing(rental, now_ms, GONE_MS):  # 1
            return finish(rental, now_ms)
    else:
        rental = noted(rental, sight.reason, rental.next_look_at)
    if not rental.alarm and now_ms - (rental.destroying_since or now_ms) >= STUCK_MS:
        rental = replace(rental, alarm="destroy_stuck")
        events = (RentalEvent("rental.destroy_stuck", {}, is_alarm=True),)
    if sight.is_known and sight.instance is None:  # 2
        return RentalStep(replace(rental, next_look_at=now_ms + GONE_MS), events=events)
    due_ms = (rental.destroy_called_at or 0) + backoff_ms(rental.destroy_calls)
    if now_ms < due_ms:
        return RentalStep(replace(rental, next_look_at=min(due_ms, now_ms + START_LOOK_MS)), events=events)
    called = replace(rental, destroy_called_at=now_ms, destroy_calls=rental.destroy_calls + 1)
    return RentalStep(replace(called, next_look_at=now_ms), "destroy", events=events)  # 3


def _warned(step: RentalStep, now_ms: int) -> RentalStep:
    """Tell that the lease ends soon: once at 10 minutes, once at 2."""
    rental = step.rental
    left_s = (rental.lease_ends_at - now_ms) / 1000
    due = [warning for warning in WARNINGS_S if left_s <= warning]
    if not due or (rental.warned_s and rental.warned_s <= min(due)):
        return step
    event = RentalEvent("rental.lease_ends", {"in_s": round(left_s)})
    return replace(step, rental=replace(rental, warned_s=min(due)), events=(*step.events, event))
