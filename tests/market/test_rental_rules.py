"""What happens to a rental next, as a table: its row, what its market says, the time → row and call."""

from dataclasses import replace
from typing import Any

import pytest

from appliance.base.errors import Exhausted
from appliance.market.brake import LaunchLimits, MarketUse, after_start, refusal_of
from appliance.market.launches import label_of, rental_of_label
from appliance.market.money import cost_until, first_hold, price_of, wanted_hold
from appliance.market.rental_rules import decide, question_of
from appliance.market.rental_steps import (
    NOT_KNOWN,
    Sight,
    after_create,
    after_destroy,
    ask_end,
    begin_end,
    roll_back,
)
from appliance.market.rental_types import LIVE_STATES, Rental
from appliance.market.types import Instance, InstanceState, MarketRefused, MarketUnknown, OfferGone

T = 1_800_000_000_000
S = 1000
BASE = Rental(
    id="01936c3e-1234-7abc-8def-0123456789ab",
    label="apl-00aa11bb-01936c3e-1234-7abc-8def-0123456789ab",
    state="wanted",
    user_id="u",
    wallet_id="w",
    provider="vast.ai",
    offer_id="7",
    price_musd_per_h=3_600_000,
    supply_musd_per_h=3_000_000,
    created_at=T,
    start_deadline_at=T + 900 * S,
    lease_ends_at=T + 3600 * S,
    next_look_at=T,
)


def row(state: str, **more: Any) -> Rental:
    values: dict[str, Any] = {"state": state, "create_called_at": T}
    if state in ("starting", "ready", "draining", "destroying"):
        values["contract_id"] = "c"
    if state in ("ready", "draining"):
        values |= {"billed_from": T + 20 * S, "last_seen_at": T + 30 * S, "ready_at": T + 20 * S}
    if state == "draining":
        values |= {"draining_since": T + 60 * S, "end_state": "gone", "end_reason": "asked"}
    if state == "destroying":
        values |= {
            "destroying_since": T + 60 * S,
            "destroy_called_at": T + 60 * S,
            "destroy_calls": 1,
            "end_state": "gone",
            "end_reason": "asked",
        }
    return replace(BASE, **(values | more))


def seen(state: InstanceState = InstanceState.RUNNING, **more: Any) -> Sight:
    return Sight(Instance("vast.ai", "c", BASE.label, state, market_status=state.value, **more))


RUNNING, STARTING = InstanceState.RUNNING, InstanceState.STARTING
FAILED, STOPPED, ENDED = InstanceState.FAILED, InstanceState.STOPPED, InstanceState.ENDED
MISSING = Sight()
ONE_MISS = {"misses": 1, "first_missed_at": T + 100 * S}
BAD = {"bad_since": T + 100 * S}

TABLE = [
    # row, what the market says, seconds since its order, state then, call, reason
    (row("wanted"), NOT_KNOWN, 0, "creating", "create", ""),
    (row("wanted", end_state="gone", end_reason="asked"), NOT_KNOWN, 0, "gone", "", "asked"),
    (row("wanted", turn=1), NOT_KNOWN, 40, "creating", "create", ""),
    (row("wanted", turn=2), NOT_KNOWN, 40, "failed", "", "abandoned"),
    (row("wanted", turn=2, idempotency_key="k"), NOT_KNOWN, 40, "creating", "create", ""),
    (row("wanted", turn=2, replaces="r"), NOT_KNOWN, 40, "creating", "create", ""),
    # whether it was created is not known
    (row("creating"), NOT_KNOWN, 40, "unknown", "", ""),
    (row("unknown"), seen(STARTING), 40, "starting", "", ""),
    (row("unknown"), seen(RUNNING), 40, "starting", "", ""),
    (row("unknown", end_state="gone"), seen(STARTING), 40, "destroying", "destroy", ""),
    (row("unknown"), MISSING, 200, "unknown", "", ""),
    (row("unknown", **ONE_MISS), MISSING, 159, "unknown", "", ""),
    (row("unknown", **ONE_MISS), MISSING, 179, "unknown", "", ""),
    (row("unknown", **ONE_MISS), MISSING, 180, "failed", "", "not_created"),
    (row("unknown", end_state="gone", **ONE_MISS), MISSING, 180, "gone", "", "not_created"),
    (row("unknown", **ONE_MISS), NOT_KNOWN, 100_000, "unknown", "", ""),
    # it starts
    (row("starting"), seen(STARTING), 100, "starting", "", ""),
    (row("starting"), seen(RUNNING), 100, "ready", "", ""),
    (row("starting"), seen(STARTING), 899, "starting", "", ""),
    (row("starting"), seen(STARTING), 900, "destroying", "destroy", "start_timeout"),
    (row("starting"), seen(FAILED), 100, "starting", "", ""),
    (row("starting", **BAD), seen(FAILED), 159, "starting", "", ""),
    (row("starting", **BAD), seen(FAILED), 160, "destroying", "destroy", "start_failed"),
    (row("starting", **BAD), seen(STOPPED), 160, "destroying", "destroy", "start_failed"),
    (row("starting"), NOT_KNOWN, 1000, "starting", "", ""),
    (row("starting"), MISSING, 100, "starting", "", ""),
    (row("starting", **ONE_MISS), MISSING, 159, "starting", "", ""),
    (row("starting", **ONE_MISS), MISSING, 160, "failed", "", "start_lost"),
    (row("starting"), seen(ENDED), 100, "failed", "", "start_lost"),
    (row("starting", end_state="gone", end_reason="asked"), NOT_KNOWN, 100, "destroying", "destroy", "asked"),
    # it runs
    (row("ready"), seen(RUNNING), 100, "ready", "", ""),
    (row("ready"), NOT_KNOWN, 3599, "ready", "", ""),
    (row("ready"), NOT_KNOWN, 3600, "draining", "", "lease_ended"),
    (row("ready"), seen(RUNNING), 3600, "draining", "", "lease_ended"),
    (row("ready"), seen(FAILED), 100, "ready", "", ""),
    (row("ready", **BAD), seen(STARTING), 160, "destroying", "destroy", "instance_failed"),
    (row("ready", **BAD), seen(RUNNING), 160, "ready", "", ""),
    (row("ready"), MISSING, 100, "ready", "", ""),
    (row("ready", **ONE_MISS), MISSING, 159, "ready", "", ""),
    (row("ready", **ONE_MISS), MISSING, 160, "lost", "", "lost"),
    (row("ready"), seen(ENDED), 100, "lost", "", "lost"),
    (row("ready", end_state="gone", end_reason="asked"), seen(RUNNING), 100, "draining", "", "asked"),
    # it ends
    (row("draining"), seen(RUNNING), 61, "destroying", "destroy", "asked"),
    (row("destroying"), seen(RUNNING), 61, "destroying", "", "asked"),
    (row("destroying"), seen(RUNNING), 65, "destroying", "destroy", "asked"),
    (row("destroying"), NOT_KNOWN, 65, "destroying", "destroy", "asked"),
    (row("destroying"), MISSING, 65, "destroying", "", "asked"),
    (row("destroying", **ONE_MISS), MISSING, 109, "destroying", "", "asked"),
    (row("destroying", **ONE_MISS), MISSING, 110, "gone", "", "asked"),
    (row("destroying"), seen(ENDED), 65, "gone", "", "asked"),
    (row("destroying", end_state="failed"), seen(ENDED), 65, "failed", "", "asked"),
    # it has ended
    (row("gone", next_look_at=None), seen(RUNNING), 65, "gone", "", ""),
]


@pytest.mark.parametrize(("before", "sight", "after_s", "state", "call", "reason"), TABLE)
def test_what_happens_next(
    before: Rental, sight: Sight, after_s: int, state: str, call: str, reason: str
) -> None:
    step = decide(before, sight, T + after_s * S)
    assert (step.rental.state, step.call, step.rental.end_reason) == (state, call, reason)
    assert (step.rental.next_look_at is None) == (state not in LIVE_STATES)
    assert not call or step.rental.state in ("creating", "destroying")


def test_a_miss_between_two_sights_counts_anew() -> None:
    once = decide(row("ready"), MISSING, T + 100 * S).rental
    again = decide(once, seen(), T + 110 * S).rental
    assert (once.misses, again.misses) == (1, 0)
    missed = decide(again, MISSING, T + 170 * S).rental
    assert (missed.state, missed.misses) == ("ready", 1)


def test_a_clock_that_jumps_back_ends_nothing() -> None:
    once = decide(row("ready"), MISSING, T + 500 * S).rental
    again = decide(once, MISSING, T + 100 * S).rental
    assert (again.state, again.first_missed_at) == ("ready", T + 100 * S)


def test_draining_waits_for_requests_a_minute() -> None:
    draining = row("draining")
    assert decide(draining, seen(), T + 119 * S, is_drained=False).call == ""
    assert decide(draining, seen(), T + 120 * S, is_drained=False).call == "destroy"
    assert decide(draining, NOT_KNOWN, T + 61 * S).call == "destroy"


def test_destroying_is_repeated_less_and_less_often() -> None:
    rental, calls = row("destroying"), []
    for second in range(60, 700):
        step = decide(rental, seen(), T + second * S)
        rental = step.rental
        if step.call:
            calls.append(second)
            rental = after_destroy(rental, None, T + second * S).rental
    assert calls[:8] == [65, 75, 95, 135, 195, 255, 315, 375]
    assert rental.alarm == "destroy_stuck"


def test_an_alarm_is_told_once() -> None:
    told = [
        event.kind
        for second in (659, 660, 700)
        for event in decide(
            row("destroying", alarm="" if second < 700 else "destroy_stuck"), seen(), T + second * S
        ).events
    ]
    assert told == ["rental.destroy_stuck"]


@pytest.mark.parametrize(
    ("outcome", "state", "reason"),
    [
        ("c", "starting", ""),
        ("", "unknown", ""),
        (OfferGone("gone"), "failed", "offer_gone"),
        (MarketRefused("no"), "failed", "market_refused"),
        (MarketUnknown("?"), "unknown", ""),
        (RuntimeError("x"), "unknown", ""),
        (TimeoutError(), "unknown", ""),
    ],
)
def test_what_the_answer_to_a_creation_means(outcome: str | Exception, state: str, reason: str) -> None:
    step = after_create(row("creating"), outcome, T)
    assert (step.rental.state, step.rental.end_reason) == (state, reason)
    assert after_create(row("unknown"), outcome, T).rental.state == "unknown"


def test_what_was_not_created_for_a_reservation_can_be_tried_elsewhere() -> None:
    step = after_create(row("creating"), OfferGone("gone"), T, is_kept=True)
    assert (step.rental.state, step.rental.create_called_at) == ("wanted", None)
    ended = after_create(row("creating", end_state="gone"), OfferGone("gone"), T, is_kept=True)
    assert ended.rental.state == "gone"


def test_an_end_that_was_asked_for_while_it_was_created_destroys_it() -> None:
    step = after_create(row("creating", end_state="gone", end_reason="asked"), "c", T)
    assert (step.rental.state, step.call) == ("destroying", "destroy")


@pytest.mark.parametrize(
    ("state", "then", "call"),
    [
        ("wanted", "failed", ""),
        ("creating", "creating", ""),
        ("unknown", "unknown", ""),
        ("starting", "destroying", "destroy"),
        ("ready", "destroying", "destroy"),
        ("draining", "destroying", "destroy"),
        ("destroying", "destroying", ""),
        ("gone", "gone", ""),
    ],
)
def test_giving_back_costs_the_user_nothing(state: str, then: str, call: str) -> None:
    before = row(state) if state != "draining" else row(state, end_state="", end_reason="")
    step = roll_back(before, T + 100 * S)
    assert (step.rental.state, step.call) == (then, call)
    assert cost_until(step.rental, T + 900 * S) == 0


def test_an_end_is_asked_for_once() -> None:
    asked = ask_end(row("ready"), "gone", "asked", T)
    assert ask_end(asked, "gone", "shutdown", T).end_reason == "asked"
    assert begin_end(asked, "failed", "other", T).rental.end_state == "gone"


@pytest.mark.parametrize(
    ("state", "contract", "question"),
    [
        ("wanted", "", ""),
        ("creating", "", "list"),
        ("unknown", "", "list"),
        ("starting", "c", "get"),
        ("ready", "c", "get"),
        ("destroying", "c", "get"),
        ("gone", "c", ""),
        ("failed", "", ""),
    ],
)
def test_what_the_market_is_asked(state: str, contract: str, question: str) -> None:
    assert question_of(replace(BASE, state=state, contract_id=contract)) == question


# ---- whose clock


@pytest.mark.parametrize(
    ("told_s", "billed_s", "clock"),
    [
        (None, 30, "ours"),
        (25, 25, "provider"),
        (20, 20, "provider"),
        (30, 30, "provider"),
        (19, 30, "ours"),  # before it was seen not to run
        (31, 30, "ours"),  # in the future
        (-300, 30, "ours"),
        (330, 30, "ours"),
    ],
)
def test_the_user_pays_from_when_it_ran(told_s: int | None, billed_s: int, clock: str) -> None:
    before = row("starting", last_seen_at=T + 20 * S)
    told = None if told_s is None else T + told_s * S
    after = decide(before, seen(started_ms=told), T + 30 * S).rental
    assert (after.billed_from, after.clock) == (T + billed_s * S, clock)


def test_what_failed_is_paid_for_until_it_failed() -> None:
    before = row("ready", **BAD)
    ended = decide(before, seen(FAILED), T + 170 * S).rental
    assert ended.billed_until == T + 100 * S


def test_what_has_stopped_is_not_asked_for_by_its_market() -> None:
    running = decide(row("ready", supplied_from=T + 20 * S), seen(), T + 90 * S).rental
    stopped = decide(running, seen(STOPPED), T + 120 * S).rental
    ended = decide(stopped, seen(STOPPED), T + 180 * S).rental
    assert (ended.state, ended.supplied_until) == ("destroying", T + 90 * S)
    gone = decide(ended, seen(ENDED), T + 190 * S).rental
    assert (gone.state, gone.supplied_until) == ("failed", T + 90 * S)


def test_what_was_missing_when_its_lease_ended_is_not_paid() -> None:
    before = row("ready", supplied_from=T + 20 * S, supplied_until=T + 30 * S)
    draining = decide(before, MISSING, T + 3600 * S).rental
    ended = decide(draining, MISSING, T + 3601 * S).rental
    assert (ended.state, ended.billed_until) == ("destroying", T + 30 * S)
    gone = decide(ended, seen(ENDED), T + 3610 * S).rental
    assert (gone.state, gone.supplied_until) == ("gone", T + 30 * S)


def test_what_was_destroyed_is_counted_up_to_the_first_answer() -> None:
    rental = row("destroying", last_seen_at=T + 50 * S, supplied_from=T, supplied_until=T + 50 * S)
    unclear = after_destroy(rental, MarketUnknown("?"), T + 61 * S).rental
    assert unclear.supplied_until == T + 50 * S
    done = after_destroy(replace(rental, destroy_called_at=T + 70 * S), None, T + 71 * S).rental
    again = after_destroy(replace(done, destroy_called_at=T + 500 * S), None, T + 501 * S).rental
    assert (done.supplied_until, again.supplied_until) == (T + 70 * S, T + 70 * S)
    alive = decide(again, seen(), T + 510 * S).rental
    assert alive.supplied_until == T + 510 * S


def test_what_was_never_shown_is_counted_from_its_creation() -> None:
    before = row("destroying", end_state="gone", last_seen_at=None, **ONE_MISS)
    gone = decide(before, MISSING, T + 200 * S).rental
    assert (gone.supplied_from, gone.supplied_until, gone.billed_from) == (T, T + 60 * S, None)


def test_what_is_lost_is_paid_for_while_it_was_seen() -> None:
    ended = decide(row("ready", **ONE_MISS), MISSING, T + 200 * S).rental
    assert ended.billed_until == T + 30 * S


# ---- money


@pytest.mark.parametrize(
    ("musd_per_h", "ms", "musd"),
    [
        (3_600_000, 1000, 1000),
        (1, 1, 1),
        (1, 0, 0),
        (7, 3_600_000, 7),
        (1_200_000, 900_000, 300_000),
        (5, -1, 0),
    ],
)
def test_time_is_rounded_up_once(musd_per_h: int, ms: int, musd: int) -> None:
    assert price_of(musd_per_h, ms) == musd


@pytest.mark.parametrize(
    ("rental", "after_s", "musd"),
    [
        (row("starting"), 60, 900_000),
        (row("ready"), 20, 900_000),  # it runs since 20 s: nothing is open
        (row("ready"), 120, 1_000_000),  # 100 s are not charged yet
        (row("ready"), 3590, 3_570_000 + 70_000),  # ten seconds of the lease, and a minute to end
        (row("ready", cost_musd=3_570_000), 3590, 70_000),
        (row("ready", max_cost_musd=500_000), 120, 500_000),
        (row("ready", max_cost_musd=500_000, cost_musd=450_000), 120, 50_000),
        (row("ready", prepaid_hours=2), 120, 7_200_000),
        (row("ready", prepaid_hours=2, cost_musd=200_000), 120, 7_000_000),
        (row("destroying", billed_from=T, billed_until=T + 60 * S), 600, 60_000),
        (row("gone", billed_from=T, billed_until=T + 60 * S, cost_musd=60_000), 600, 0),
        (row("unknown", end_reason="rolled_back", end_state="failed"), 60, 0),
    ],
)
def test_what_is_held(rental: Rental, after_s: int, musd: int) -> None:
    assert wanted_hold(rental, T + after_s * S) == musd


@pytest.mark.parametrize(
    ("hours", "ceiling", "musd"),
    [(0, None, 900_000), (24, None, 86_400_000), (0, 5000, 5000), (24, 5000, 5000)],
)
def test_what_is_held_at_first(hours: int, ceiling: int | None, musd: int) -> None:
    assert first_hold(3_600_000, hours, ceiling) == musd


@pytest.mark.parametrize(
    ("more", "musd"),
    [
        ({}, 60_000),
        ({"end_state": "gone"}, 7_200_000),
        ({"end_state": "failed"}, 60_000),
        ({"end_state": "gone", "paid_musd": 3_000_000}, 3_600_000),  # the market gave half of it back
        ({"end_state": "gone", "paid_musd": 1}, 60_000),
    ],
)
def test_what_is_paid_ahead_costs_what_the_market_keeps(more: dict[str, Any], musd: int) -> None:
    ended = row(
        "destroying", prepaid_hours=2, billed_from=T, billed_until=T + 60 * S, **({"end_state": ""} | more)
    )
    assert cost_until(ended, T + 600 * S) == musd


# ---- the brake


@pytest.mark.parametrize(
    ("use", "code"),
    [
        (MarketUse(), None),
        (MarketUse(is_frozen=True), "market_frozen"),
        (MarketUse(paused_until_ms=T + 1), "launches_paused"),
        (MarketUse(paused_until_ms=T), None),
        (MarketUse(unknown_since_ms={"vast.ai": T - 60_001}), "market_unknown"),
        (MarketUse(unknown_since_ms={"vast.ai": T - 60_000}), None),
        (MarketUse(unknown_since_ms={"io.net": T - 60_001}), None),
        (MarketUse(live_of_user=3), "rental_limit"),
        (MarketUse(live_of_user=2), None),
        (MarketUse(launched_of_user=9), "launch_limit"),
        (MarketUse(launched_of_user=8), None),
        (MarketUse(live=15), "market_full"),
        (MarketUse(live=14), None),
        (MarketUse(supply_musd_per_h=18_000_001), "market_full"),
        (MarketUse(supply_musd_per_h=18_000_000), None),
        (MarketUse(credit_musd={"vast.ai": 3_999_999}), "provider_credit"),
        (MarketUse(credit_musd={"vast.ai": 4_000_000}), None),
        (
            MarketUse(credit_musd={"vast.ai": 5_000_000}, supply_of_provider={"vast.ai": 600_000}),
            "provider_credit",
        ),
    ],
)
def test_what_may_be_launched(use: MarketUse, code: str | None) -> None:
    refusal = refusal_of(use, [("vast.ai", 1_000_000)] * 2, LaunchLimits(), T)
    assert (refusal.code if refusal else None) == code
    if isinstance(refusal, Exhausted):
        assert refusal.kind.value == "exhausted"


def test_three_failed_starts_in_a_row_are_a_pause() -> None:
    assert after_start(0, False, T) == (1, None)
    assert after_start(1, True, T) == (0, None)
    assert after_start(2, False, T) == (0, T + 900_000)


@pytest.mark.parametrize(
    ("label", "rental"),
    [
        (label_of("00aa11bb", BASE.id), BASE.id),
        (label_of("00aa11bc", BASE.id), None),
        (f"x{label_of('00aa11bb', BASE.id)}", None),
        ("apl-00aa11bb-", None),
        ("apl-00aa11bb-mine", None),
        (f"{label_of('00aa11bb', BASE.id)}x", None),
        ("", None),
    ],
)
def test_a_label_is_ours_only_as_we_write_it(label: str, rental: str | None) -> None:
    assert rental_of_label(label, "00aa11bb") == rental
