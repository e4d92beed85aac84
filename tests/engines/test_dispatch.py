"""Which backend gets a request, which requests wait, and what happens after a failure: tables of backends."""

import asyncio
from typing import Any

import pytest

from appliance.base.errors import (
    ApplianceError,
    Exhausted,
    Forbidden,
    Invalid,
    Kind,
    TimedOut,
    Unavailable,
    UpstreamFailed,
)
from appliance.base.wire.types import BrokenResponse
from appliance.engines.outcome import Outcome
from appliance.engines.slots import Slot
from appliance.engines.types import BackendStatus, RequestOptions
from appliance.engines.upstream.attempt import AttemptFailed
from appliance.engines.upstream.refusal import context_error
from tests.engines.scripted import OK, Dispatching, TableBackend, pool_of

READY, FULL, STARTING = BackendStatus.READY, BackendStatus.FULL, BackendStatus.STARTING
DOWN, DRAINING, CIRCUIT_OPEN = BackendStatus.DOWN, BackendStatus.DRAINING, BackendStatus.CIRCUIT_OPEN
LOCAL = RequestOptions(is_local_only=True)


def backend(name: str, **how: Any) -> TableBackend:
    return TableBackend(name, **how)


def failed(outcome: Outcome, **how: Any) -> AttemptFailed:
    return AttemptFailed(outcome, "why", **how)


# ---- the choice


@pytest.mark.parametrize(
    ("backends", "how", "chosen", "reason"),
    [
        # 1. the first pool with a backend that is ready
        ([backend("a")], {}, "a", "model"),
        ([backend("a", status=FULL), backend("b")], {}, "b", "model"),
        ([backend("a", status=DOWN), backend("b")], {}, "b", "model"),
        ([backend("a", status=STARTING), backend("b")], {}, "b", "model"),
        ([backend("a", status=CIRCUIT_OPEN), backend("b")], {}, "b", "model"),
        ([backend("a", status=DRAINING), backend("b")], {}, "b", "model"),
        # several: the pool's strategy
        ([backend("a"), backend("b")], {}, "a", "model, round_robin"),
        # only those that serve the model; None = any
        ([backend("a", models=["x"]), backend("b")], {}, "b", "model"),
        ([backend("a", models=["x"])], {"model": None}, "a", "model"),
        # never the same one twice
        ([backend("a"), backend("b")], {"tried": {"a"}}, "b", "model"),
        # only those with context enough; where it is not known, it may be
        (
            [backend("a", context_tokens=10), backend("b", context_tokens=20)],
            {"options": RequestOptions(context_tokens=20)},
            "b",
            "model",
        ),
        ([backend("a", context_tokens=10), backend("b")], {"context_over": 10}, "b", "model"),
        # only local ones, if the request says so
        ([backend("a", is_remote=True), backend("b")], {"options": LOCAL}, "b", "model"),
        # a pinned one, whatever its state
        (
            [backend("a"), backend("b", status=DOWN)],
            {"options": RequestOptions(pin="b")},
            "b",
            "model, pinned",
        ),
    ],
)
async def test_the_first_pool_that_can_gives_the_backend(
    backends: list[TableBackend], how: dict[str, Any], chosen: str, reason: str
) -> None:
    slot, receipt = await Dispatching(pool_of(*backends)).take(**how)
    assert (slot.backend.name, receipt.reason, receipt.pool, receipt.overflow) == (
        chosen,
        reason,
        "default",
        "",
    )
    slot.release(Outcome.OK)


async def test_without_balancing_the_first_ready_one_is_taken() -> None:
    it = Dispatching(pool_of(backend("a", status=FULL), backend("b"), backend("c")), lb_enabled=False)
    assert [(await it.take())[0].backend.name for _ in range(3)] == ["b", "b", "b"]


async def test_prefix_affinity_sends_a_conversation_where_it_was() -> None:
    it = Dispatching(pool_of(backend("a"), backend("b"), strategy="prefix_affinity"))
    first, _ = await it.take(hash_prefixes=lambda: [1])
    first.release(Outcome.OK)
    second, receipt = await it.take(hash_prefixes=lambda: [1, 2])
    assert second.backend is first.backend
    assert receipt.reason == "model, affinity"


@pytest.mark.parametrize(
    ("first", "how", "overflow", "why"),
    [
        ([backend("a", status=FULL)], {}, "default is full", "full"),
        ([backend("a", status=DOWN)], {}, "default is down", "down"),
        ([backend("a")], {"tried": {"a"}}, "default failed", "failed"),
        ([backend("a", models=["x"])], {}, "default is down", "down"),
    ],
)
async def test_a_later_pool_takes_over_and_the_receipt_says_why(
    first: list[TableBackend], how: dict[str, Any], overflow: str, why: str
) -> None:
    it = Dispatching(pool_of(*first), pool_of(backend("b"), name="spare"))
    slot, receipt = await it.take(**how)
    assert (slot.backend.name, receipt.pool, receipt.overflow) == ("b", "spare", overflow)
    assert receipt.reason == f"overflow from {overflow}, only_one"
    assert it.count("overflows", "default", "spare", why) == 1


async def test_a_local_request_does_not_overflow() -> None:
    it = Dispatching(pool_of(backend("a", status=DOWN)), pool_of(backend("b"), name="spare"))
    with pytest.raises(Unavailable, match="a is down"):
        await it.take(options=LOCAL)


# ---- no backend can answer


@pytest.mark.parametrize(
    ("backends", "how", "kind", "code", "text"),
    [
        ([], {}, Kind.UNAVAILABLE, "no_backend", "No backend available."),
        (
            [backend("a", status=DOWN), backend("b", status=CIRCUIT_OPEN)],
            {},
            Kind.UNAVAILABLE,
            "no_backend",
            "No backend available: a is down, b is circuit_open.",
        ),
        (
            [backend("a", is_remote=True)],
            {"options": LOCAL},
            Kind.UNAVAILABLE,
            "stay_local",
            "No local backend can answer, and the request may not leave this machine (x-appliance-stay-local).",
        ),
        (
            [backend("a", context_tokens=10), backend("b", context_tokens=20)],
            {"options": RequestOptions(context_tokens=21)},
            Kind.INVALID,
            "context_length_exceeded",
            "The request asks for a context of 21 tokens (num_ctx); the model 'm' has at most 20 here. "
            "Ask for less, or leave num_ctx out.",
        ),
    ],
)
async def test_what_is_said_when_no_backend_can_answer(
    backends: list[TableBackend], how: dict[str, Any], kind: Kind, code: str, text: str
) -> None:
    error, _ = await Dispatching(pool_of(*backends)).answer(**how)
    assert isinstance(error, ApplianceError)
    assert (error.kind, error.code, error.message) == (kind, code, text)


# ---- after a failure


@pytest.mark.parametrize(
    ("failure", "is_asked", "cost"),
    [
        # 1. the client's own fault: no other backend is tried
        (Invalid("bad"), False, 0),
        (Forbidden("no"), False, 0),
        # errors that a hosted API raises itself
        (UpstreamFailed("all endpoints"), True, 1),
        (Unavailable("circuits open"), True, 1),
        (TimedOut("late"), True, 1),
        (Exhausted("too many"), True, 1),
        # 4. the server did no work
        (failed(Outcome.CONNECT, was_sent=False), True, 0),
        (failed(Outcome.FULL), True, 0),
        (failed(Outcome.ADAPTER_MISSING), True, 0),
        (failed(Outcome.UNSUPPORTED, status=501), True, 0),
        # 5. taken from the retry budget
        (failed(Outcome.ENGINE_ERROR, status=500, sentence="Compute error."), True, 1),
        (failed(Outcome.STATUS, status=502), True, 1),
        (failed(Outcome.FIRST_BYTE), True, 1),
        (failed(Outcome.INVALID_RESPONSE), True, 1),
        (failed(Outcome.KEY_REFUSED, status=401), True, 1),
    ],
)
async def test_another_backend_may_try(failure: Exception, is_asked: bool, cost: int) -> None:
    a, b = TableBackend("a", failure), backend("b")
    it = Dispatching(pool_of(a, b))
    before = it.dispatcher.retry_budget.tokens
    reply, receipt = await it.answer()
    assert (a.asked, b.asked) == (["m"], ["m"] if is_asked else [])
    assert (reply is OK) is is_asked
    assert len(receipt.attempts) == 1 + is_asked
    assert it.dispatcher.retry_budget.tokens == pytest.approx(before + 0.2 - cost)
    label = failure.label if isinstance(failure, AttemptFailed) else failure.kind.value  # type: ignore[attr-defined]
    assert it.count("retries", label) == is_asked


def engine_said(sentence: str, outcome: Outcome = Outcome.ENGINE_ERROR) -> AttemptFailed:
    return failed(outcome, status=500, sentence=sentence)


@pytest.mark.parametrize(
    ("first", "second", "asked"),
    [
        ("Compute error.", "Compute error.", ["a", "b"]),
        ("task 7 failed", "task 12 failed", ["a", "b"]),  # numbers do not count
        ("Compute error.", "Out of memory.", ["a", "b", "c"]),
    ],
)
@pytest.mark.parametrize("outcome", [Outcome.ENGINE_ERROR, Outcome.ERROR_EVENT, Outcome.UNSUPPORTED])
async def test_the_same_sentence_from_a_second_server_ends_the_tries(
    first: str, second: str, asked: list[str], outcome: Outcome
) -> None:
    a, b = TableBackend("a", engine_said(first, outcome)), TableBackend("b", engine_said(second, outcome))
    c = backend("c")
    reply, _ = await Dispatching(pool_of(a, b), pool_of(c, name="spare")).answer()
    assert [one.name for one in (a, b, c) if one.asked] == asked
    assert (reply is OK) is ("c" in asked)


async def test_an_unknown_error_is_told_in_the_engines_words() -> None:
    a, b = TableBackend("a", engine_said("Compute error.")), TableBackend("b", engine_said("Compute error."))
    error, _ = await Dispatching(pool_of(a, b)).answer()
    assert isinstance(error, UpstreamFailed)
    assert (error.message, error.code) == ("Compute error.", "upstream_error")
    assert [row["outcome"] for row in error.details["attempts"]] == ["status_500"] * 2


async def test_another_servers_answer_confirms_a_failure() -> None:
    confirmed: list[str] = []
    failure = engine_said("Compute error.")
    failure.on_confirmed = lambda: confirmed.append("a")
    it = Dispatching(pool_of(TableBackend("a", failure), backend("b")))
    assert (await it.answer())[0] is OK
    assert confirmed == ["a"]


async def test_nothing_is_confirmed_where_nobody_answers() -> None:
    confirmed: list[str] = []
    failure = engine_said("Compute error.")
    failure.on_confirmed = lambda: confirmed.append("a")
    it = Dispatching(pool_of(TableBackend("a", failure), TableBackend("b", engine_said("Compute error."))))
    assert isinstance((await it.answer())[0], UpstreamFailed)
    assert confirmed == []


async def test_too_long_a_prompt_is_told_in_the_engines_words() -> None:
    said = context_error(30, 20, sentence="too large")
    long = failed(Outcome.CONTEXT, context=(30, 20), error=said, sentence="too large")
    error, _ = await Dispatching(pool_of(TableBackend("a", long, context_tokens=20))).answer()
    assert error is said


async def test_of_several_contexts_the_largest_is_told() -> None:
    a = TableBackend("a", failed(Outcome.CONTEXT, context=(30, 20), error=context_error(30, 20)))
    b = TableBackend("b", failed(Outcome.CONTEXT, context=(30, 0), error=context_error(30, 0)))
    error, _ = await Dispatching(pool_of(a, b)).answer()
    assert isinstance(error, Invalid)
    assert "the largest context here is 20 tokens" in error.message


async def test_a_failure_on_a_pinned_backend_is_final() -> None:
    a, b = TableBackend("a", failed(Outcome.STATUS, status=503)), backend("b")
    error, _ = await Dispatching(pool_of(a, b)).answer(options=RequestOptions(pin="a"))
    assert isinstance(error, UpstreamFailed)
    assert b.asked == []


async def test_an_empty_retry_budget_ends_the_attempts() -> None:
    a, b = TableBackend("a", failed(Outcome.STATUS, status=502)), backend("b")
    it = Dispatching(pool_of(a, b))
    it.dispatcher.retry_budget.tokens = 0.0
    error, _ = await it.answer()
    assert isinstance(error, UpstreamFailed)
    assert b.asked == []


async def test_too_long_a_prompt_goes_to_those_with_more_context() -> None:
    long = failed(Outcome.CONTEXT, context=(30, 20), error=context_error(30, 20))
    a, b = TableBackend("a", long, context_tokens=20), backend("b", context_tokens=20)
    c = backend("c", context_tokens=40)
    reply, _ = await Dispatching(pool_of(a, b, c)).answer()
    assert (reply is OK, b.asked, c.asked) == (True, [], ["m"])


async def test_a_failed_attempt_overflows_into_the_next_pool() -> None:
    it = Dispatching(
        pool_of(TableBackend("a", failed(Outcome.STATUS, status=500))), pool_of(backend("b"), name="spare")
    )
    reply, receipt = await it.answer()
    assert (reply is OK, receipt.overflow) == (True, "default failed")


@pytest.mark.parametrize(
    ("failure", "kind", "code", "text"),
    [
        (
            failed(Outcome.CONTEXT, context=(30, 20)),
            Kind.INVALID,
            "context_length_exceeded",
            "The request needs 30 tokens; the largest context here is 20 tokens for the model 'm'.",
        ),
        (
            failed(
                Outcome.KEY_REFUSED, error=UpstreamFailed("Set its `api_key`.", code="upstream_key_refused")
            ),
            Kind.UPSTREAM,
            "upstream_key_refused",
            "Set its `api_key`.",
        ),
        (failed(Outcome.FULL), Kind.EXHAUSTED, "backends_full", "Every backend that could be asked is full."),
        (
            failed(Outcome.FIRST_BYTE),
            Kind.TIMEOUT,
            "timeout",
            "No backend answered in time (1 tried, the last: first_byte, why).",
        ),
        (
            AttemptFailed.of(BrokenResponse("closed without a byte", phase="first_byte")),
            Kind.UPSTREAM,
            "upstream_error",
            "No backend could answer (1 tried, the last: first_byte, closed without a byte).",
        ),
        (failed(Outcome.TOTAL), Kind.TIMEOUT, "timeout", "(1 tried, the last: total, why)"),
        (failed(Outcome.IDLE), Kind.TIMEOUT, "timeout", "(1 tried, the last: idle, why)"),
        (
            failed(Outcome.CONNECT, was_sent=False),
            Kind.UNAVAILABLE,
            "no_backend",
            "No backend available: none could be reached (1 tried, the last: connect).",
        ),
        (
            failed(Outcome.STATUS, status=502),
            Kind.UPSTREAM,
            "upstream_error",
            "No backend could answer (1 tried, the last: status_502).",
        ),
        (
            failed(Outcome.ERROR_EVENT, sentence="quota spent"),
            Kind.UPSTREAM,
            "upstream_error",
            "quota spent",
        ),
        (
            failed(Outcome.ERROR_EVENT),
            Kind.UPSTREAM,
            "upstream_error",
            "No backend could answer (1 tried, the last: error_event, why).",
        ),
        (Unavailable("said by itself", code="own"), Kind.UNAVAILABLE, "own", "said by itself"),
    ],
)
async def test_what_is_said_when_every_attempt_failed(
    failure: Exception, kind: Kind, code: str, text: str
) -> None:
    error, _ = await Dispatching(pool_of(TableBackend("a", failure))).answer()
    assert isinstance(error, ApplianceError)
    assert (error.kind, error.code) == (kind, code)
    assert text in error.message
    if code in {"backends_full", "upstream_error", "no_backend"}:
        assert [row["backend"] for row in error.details["attempts"]] == ["a"]


async def test_a_full_backends_own_retry_time_is_passed_on() -> None:
    error, _ = await Dispatching(pool_of(TableBackend("a", failed(Outcome.FULL, retry_after_s=7.0)))).answer()
    assert isinstance(error, Exhausted)
    assert error.retry_after_s == 7.0


# ---- the queue


def queued(it: Dispatching, **how: Any) -> "asyncio.Task[tuple[Slot, Any]]":
    """Start a request that has to wait."""
    return asyncio.get_running_loop().create_task(it.take(**how))


async def turn() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


@pytest.mark.parametrize("status", [FULL, STARTING])
async def test_a_request_waits_for_capacity_and_is_served(status: BackendStatus) -> None:
    a = backend("a", status=status)
    it = Dispatching(pool_of(a))
    waiting = queued(it)
    await turn()
    assert it.dispatcher.waiting == 1
    it.clock.advance(2)
    a.now = READY
    it.dispatcher.serve_queues()
    slot, receipt = await waiting
    assert (slot.backend, receipt.queue_ms, it.dispatcher.waiting) == (a, 2000, 0)


async def test_a_released_slot_goes_to_the_next_in_the_queue() -> None:
    it = Dispatching(pool_of(backend("a", limit=1)))
    slot, _ = await it.take()
    waiting = queued(it)
    await turn()
    assert not waiting.done()
    slot.release(Outcome.OK)
    assert (await waiting)[0].backend.name == "a"


async def test_the_queue_is_served_by_priority_then_flow_then_age() -> None:
    it = Dispatching(pool_of(backend("a", limit=1)))
    slot, _ = await it.take()
    order: list[str] = []

    async def wait(name: str, **how: Any) -> None:
        got, _ = await it.take(options=RequestOptions(**how))
        order.append(name)
        got.release(Outcome.OK)

    rows = {
        "low": {"flow": "x", "priority": 2},
        "x1": {"flow": "x"},
        "x2": {"flow": "x"},
        "y1": {"flow": "y"},
        "high": {"flow": "y", "priority": 0},
    }
    tasks = [asyncio.get_running_loop().create_task(wait(name, **how)) for name, how in rows.items()]
    await turn()
    slot.release(Outcome.OK)
    await asyncio.gather(*tasks)
    assert order == ["high", "x1", "y1", "x2", "low"]


async def test_the_queue_that_waits_longest_is_served_first() -> None:
    a = backend("a", models=["m", "n"], limit=1)
    it = Dispatching(pool_of(a))
    slot, _ = await it.take()
    older = queued(it, model="n")
    await turn()
    it.clock.advance(1)
    younger = queued(it, model="m")
    await turn()
    slot.release(Outcome.OK)
    await turn()
    assert (older.done(), younger.done()) == (True, False)
    (await older)[0].release(Outcome.OK)
    assert (await younger)[0].backend is a


@pytest.mark.parametrize(
    ("queue_limit", "text"),
    [
        (1, "The request queue is full (QUEUE_LIMIT)."),
        (0, "Every backend is full, and requests do not wait (QUEUE_LIMIT is 0)."),
    ],
)
async def test_full_queue_is_refused_with_retry_hint(queue_limit: int, text: str) -> None:
    it = Dispatching(pool_of(backend("a", status=FULL)), queue_limit=queue_limit)
    waiting = [queued(it) for _ in range(queue_limit)]
    await turn()
    with pytest.raises(Exhausted) as caught:
        await it.take()
    assert (caught.value.message, caught.value.code) == (text, "queue_full")
    assert caught.value.retry_after_s == queue_limit + 1
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    assert it.dispatcher.waiting == 0


async def test_a_full_queue_repeats_what_a_backend_said() -> None:
    a, b = TableBackend("a", Exhausted("too many", code="own")), backend("b", status=FULL)
    error, _ = await Dispatching(pool_of(a, b), queue_limit=0).answer()
    assert isinstance(error, Exhausted)
    assert error.code == "own"


@pytest.mark.parametrize(
    ("failure", "text"),
    [
        (None, "No backend had capacity within 0 seconds (QUEUE_TIMEOUT_S)."),
        (failed(Outcome.STATUS, status=502), "No backend could answer (1 tried, the last: status_502)."),
    ],
)
async def test_a_request_out_of_time_leaves_the_queue(failure: AttemptFailed | None, text: str) -> None:
    backends = [TableBackend("a", failure)] if failure else []
    it = Dispatching(pool_of(*backends, backend("b", status=FULL)))
    error, _ = await it.answer(budget_s=0)
    assert isinstance(error, ApplianceError)
    assert error.message == text
    assert it.dispatcher.waiting == 0


async def test_a_client_that_leaves_the_queue_blocks_no_other() -> None:
    it = Dispatching(pool_of(backend("a", limit=1)))
    slot, _ = await it.take()
    first, second = queued(it), queued(it)
    await turn()
    first.cancel()
    await turn()
    slot.release(Outcome.OK)
    assert (await second)[0].backend.name == "a"


async def test_a_client_that_leaves_as_it_is_served_gives_the_slot_back() -> None:
    a = backend("a", limit=1)
    it = Dispatching(pool_of(a))
    slot, _ = await it.take()
    waiting = queued(it)
    await turn()
    slot.release(Outcome.OK)  # the waiting request holds the slot now, and has not run yet
    assert a.in_flight == 1
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert a.in_flight == 0


async def test_the_hint_grows_with_the_queue_and_with_the_mean_time() -> None:
    a = backend("a", limit=1)
    a.member.mean_s = 4.0
    it = Dispatching(pool_of(a), queue_limit=1)
    slot, _ = await it.take()
    waiting = queued(it)
    await turn()
    with pytest.raises(Exhausted) as caught:
        await it.take()
    assert caught.value.retry_after_s == 8.0  # two before it, of 4 s, one at a time
    a.member.mean_s = 60.0
    with pytest.raises(Exhausted) as caught:
        await it.take()
    assert caught.value.retry_after_s == 30.0  # never longer
    slot.release(Outcome.OK)
    (await waiting)[0].release(Outcome.OK)


async def test_new_settings_hold_for_the_next_request() -> None:
    it = Dispatching(pool_of(backend("a", status=FULL)))
    it.dispatcher.apply(it.dispatcher.settings.model_copy(update={"queue_limit": 0}))
    with pytest.raises(Exhausted):
        await it.take()


async def test_a_slot_that_comes_as_the_time_is_over_is_given_back() -> None:
    a = backend("a", status=FULL)
    it = Dispatching(pool_of(a))
    waiting = queued(it, budget_s=0)
    await asyncio.sleep(0)  # it waits now, and its time-out is the next thing to run
    a.now = READY
    it.dispatcher.serve_queues()
    assert a.in_flight == 1
    with pytest.raises(Unavailable, match="QUEUE_TIMEOUT_S"):
        await waiting
    assert a.in_flight == 0


async def test_a_pinned_backend_that_had_the_request_is_not_asked_again() -> None:
    it = Dispatching(pool_of(backend("a", status=DOWN)))
    with pytest.raises(Unavailable, match="a is down"):
        await it.take(options=RequestOptions(pin="a"), tried={"a"})


class ReadyAt(TableBackend):
    """A backend whose circuit closes at a moment."""

    def status(self, now_s: float) -> BackendStatus:
        return READY if now_s >= 1 else BackendStatus.CIRCUIT_OPEN


@pytest.mark.parametrize(("begins_at", "text"), [(0, "a .*circuit"), (1, None)])
async def test_a_choice_and_its_error_are_of_one_moment(begins_at: int, text: str | None) -> None:
    """The clock moves on at each look: no error says that a backend is ready."""
    scene = Dispatching(pool_of(ReadyAt("a")))
    request, times = scene.request(), iter(range(begins_at, 9))
    scene.clock.monotonic_s = lambda: next(times)  # type: ignore[method-assign]
    if text is None:
        assert (await scene.dispatcher.take_slot(request)).backend.name == "a"
    else:
        with pytest.raises(Unavailable, match=text):
            await scene.dispatcher.take_slot(request)
