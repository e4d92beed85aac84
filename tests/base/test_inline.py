"""Coroutines that run in callbacks: starts, cancels, failures and adoption by a task, as a task would have them."""

import asyncio
import gc
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import nullcontext
from typing import Any

import pytest

from appliance.base.inline import InlineRunner, Signal, every_coroutine_in_a_task, in_task

Made = Coroutine[Any, Any, Any]


async def in_callback(call: Callable[[], Any]) -> Any:
    """Call something in a callback of the loop, where no task runs, and return its result."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[Any] = loop.create_future()

    def run() -> None:
        try:
            done.set_result(call())
        except BaseException as error:
            done.set_exception(error)

    loop.call_soon(run)
    return await done


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


class Run:
    """A coroutine in a runner, and what it has said."""

    def __init__(self, make: Callable[["Run"], Made]) -> None:
        self.said: list[str] = []
        self.ends = 0
        self.signal, self.other = Signal(), Signal()
        self.loop = asyncio.get_running_loop()
        self.future: asyncio.Future[Any] = self.loop.create_future()
        self.runner: InlineRunner[Any] = InlineRunner(make(self), self.on_done, self.loop)

    def on_done(self) -> None:
        self.ends += 1

    def say(self, word: str) -> None:
        in_a_task = asyncio.current_task(self.loop) is not None
        self.said.append(f"{word} task" if in_a_task else word)

    @property
    def error(self) -> type[BaseException] | None:
        return type(self.runner.error) if self.runner.error is not None else None


async def started(make: Callable[[Run], Made]) -> Run:
    """Start a coroutine in a callback, as bytes of a client do."""
    run = Run(make)
    await in_callback(run.runner.start)
    return run


# ---- what a coroutine waits for


async def at_once(run: Run) -> str:
    run.say("begin")
    return "result"


async def on_signal(run: Run) -> str:
    run.say("begin")
    await run.signal
    run.say("end")
    return "result"


async def on_future(run: Run) -> str:
    run.say("begin")
    value = await run.future
    run.say("end")
    return str(value)


async def on_turn(run: Run) -> str:
    run.say("begin")
    await asyncio.sleep(0)
    run.say("end")
    return "result"


async def on_task(run: Run) -> str:
    run.say("begin")
    await in_task()
    run.say("end")
    await run.signal
    return "result"


async def test_what_does_not_wait_has_ended_when_it_has_started() -> None:
    run = Run(at_once)
    assert await in_callback(lambda: (run.runner.start(), run.runner.is_done, run.ends)) == (None, True, 1)
    assert (run.said, run.runner.result(), run.error) == (["begin"], "result", None)


async def test_what_a_task_starts_begins_in_the_next_turn_without_it() -> None:
    run = Run(on_signal)
    run.runner.start()
    assert run.said == []
    await turns(1)
    assert run.said == ["begin"]
    run.signal.set()  # by a task, too
    assert not run.runner.is_done
    await turns(1)
    assert (run.said, run.ends, run.runner.result()) == (["begin", "end"], 1, "result")


async def test_a_signal_resumes_in_the_call_that_sets_it() -> None:
    run = await started(on_signal)
    assert await in_callback(lambda: (run.signal.set(), run.runner.is_done)) == (None, True)
    assert (run.said, run.ends) == (["begin", "end"], 1)


@pytest.mark.parametrize("make", [on_signal, on_task])
async def test_a_signal_set_before_is_not_waited_for(make: Callable[[Run], Made]) -> None:
    run = Run(make)
    run.signal.set()
    await in_callback(run.runner.start)
    await turns(2)
    assert (run.runner.result(), run.ends) == ("result", 1)


@pytest.mark.parametrize(
    ("make", "said", "result"),
    [
        (on_future, ["begin", "end task"], "value"),
        (on_turn, ["begin", "end task"], "result"),
        (on_task, ["begin", "end task"], "result"),
    ],
)
async def test_what_waits_for_more_goes_on_in_a_task(
    make: Callable[[Run], Made], said: list[str], result: str
) -> None:
    run = await started(make)
    run.future.set_result("value")
    run.signal.set()
    await turns()
    assert (run.said, run.runner.result(), run.ends) == (said, result, 1)


async def test_a_future_that_is_done_before_the_task_begins_is_read() -> None:
    run = Run(on_future)
    await in_callback(lambda: (run.runner.start(), run.future.set_result("value")))
    await turns()
    assert run.runner.result() == "value"


async def test_setting_a_signal_twice_resumes_once() -> None:
    async def make(run: Run) -> str:
        await run.signal
        await run.other
        return "result"

    run = await started(make)
    await in_callback(run.signal.set)
    await in_callback(run.signal.set)
    assert not run.runner.is_done
    await in_callback(run.other.set)
    assert run.runner.result() == "result"


async def test_a_signal_left_behind_does_not_resume_another_wait() -> None:
    async def make(run: Run) -> str:
        try:
            await run.signal
        except asyncio.CancelledError:
            run.say("cancelled")
        await run.other
        return "result"

    run = await started(make)
    await in_callback(run.runner.cancel)
    await in_callback(run.signal.set)
    assert (run.said, run.runner.is_done) == (["cancelled"], False)
    await in_callback(run.other.set)
    assert (run.runner.result(), run.ends) == ("result", 1)


async def test_a_task_may_wait_for_a_signal_too() -> None:
    signal = Signal()

    async def wait() -> str:
        await signal
        return "result"

    task = asyncio.get_running_loop().create_task(wait())
    await turns(1)
    await in_callback(signal.set)
    assert await task == "result"
    cancelled = asyncio.get_running_loop().create_task(wait_for(left := Signal()))
    await turns(1)
    cancelled.cancel()
    await turns(1)
    left.set()
    assert cancelled.cancelled()


async def wait_for(signal: Signal) -> None:
    await signal


# ---- failures


class Stop(BaseException):
    """What is no Exception."""


@pytest.mark.parametrize("error", [ValueError, asyncio.CancelledError, Stop, StopAsyncIteration])
@pytest.mark.parametrize("where", [at_once, on_signal, on_future, on_task])
async def test_what_it_raises_is_kept_and_ends_it(
    where: Callable[[Run], Made], error: type[BaseException]
) -> None:
    async def make(run: Run) -> str:
        await where(run)
        raise error("why")

    run = await started(make)
    await in_callback(run.signal.set)
    run.future.set_result(1)
    await turns()
    assert (run.error, run.ends, run.runner.is_done) == (error, 1, True)
    with pytest.raises(error):
        run.runner.result()


async def test_what_a_future_raises_is_raised_where_it_waits() -> None:
    async def make(run: Run) -> str:
        try:
            return await on_future(run)
        except ValueError as error:
            return f"caught {error}"

    run = await started(make)
    run.future.set_exception(ValueError("why"))
    await turns()
    assert run.runner.result() == "caught why"


# ---- cancelling: as a task does, whatever it waits for


@pytest.mark.parametrize("in_tasks", [False, True])
@pytest.mark.parametrize("from_task", [False, True])
async def test_cancelled_before_it_begins_it_begins_all_the_same(from_task: bool, in_tasks: bool) -> None:
    """Who has started it relies on its accounts; it is cancelled at its first wait."""
    run = Run(on_signal)
    with every_coroutine_in_a_task() if in_tasks else nullcontext():
        run.runner.start()
        if from_task:
            run.runner.cancel()
        else:
            run.loop.call_soon(run.runner.cancel)
        await turns()
    said = ["begin task"] if in_tasks else ["begin"]
    assert (run.said, run.error, run.ends) == (said, asyncio.CancelledError, 1)


@pytest.mark.parametrize("turn", range(4))
@pytest.mark.parametrize("from_task", [False, True])
@pytest.mark.parametrize("make", [on_signal, on_future, on_task])
async def test_cancelling_at_any_turn_ends_it_once(
    make: Callable[[Run], Made], from_task: bool, turn: int
) -> None:
    run = await started(make)
    await turns(turn)
    if from_task:
        run.runner.cancel()
    else:
        await in_callback(run.runner.cancel)
    await turns()
    assert (run.error, run.ends) == (asyncio.CancelledError, 1)
    assert run.future.cancelled() is (make is on_future)
    await in_callback(run.runner.cancel)  # it has ended: nothing
    run.signal.set()
    await turns()
    assert run.ends == 1


async def test_a_cancel_before_the_first_step_of_the_task_cancels_the_future() -> None:
    run = Run(on_future)
    await in_callback(lambda: (run.runner.start(), run.runner.cancel()))
    await turns()
    assert (run.error, run.future.cancelled(), run.said) == (asyncio.CancelledError, True, ["begin"])


@pytest.mark.parametrize("where", [on_signal, on_future, on_task])
async def test_cancelling_from_inside_raises_at_the_next_wait(where: Callable[[Run], Made]) -> None:
    async def make(run: Run) -> None:
        run.runner.cancel()
        run.say("still here")
        await where(run)

    run = await started(make)
    await turns()
    assert (run.error, run.ends) == (asyncio.CancelledError, 1)
    assert run.said == ["still here", "begin"]


async def test_cancelling_from_inside_a_task_raises_at_the_next_wait() -> None:
    async def make(run: Run) -> None:
        await in_task()
        run.runner.cancel()
        run.say("still here")
        await run.signal

    run = await started(make)
    await turns()
    assert (run.error, run.said) == (asyncio.CancelledError, ["still here task"])


async def test_a_cancel_from_inside_that_meets_no_wait_changes_nothing() -> None:
    async def make(run: Run) -> str:
        run.runner.cancel()
        return "result"

    run = await started(make)
    assert (run.runner.result(), run.ends) == ("result", 1)


@pytest.mark.parametrize("from_task", [False, True])
async def test_two_cancels_at_once_from_a_task_are_one(from_task: bool) -> None:
    """As with a task, whose clean-up a second cancel in the same turn does not interrupt."""

    async def make(run: Run) -> str:
        try:
            if from_task:
                await in_task()
            await run.signal
        except asyncio.CancelledError:
            run.say("clean-up")
            await run.other
        return "result"

    run = await started(make)
    await turns()
    run.runner.cancel()
    run.runner.cancel()
    await turns()
    assert run.error is None
    run.other.set()
    await turns()
    assert (run.runner.result(), len(run.said)) == ("result", 1)


async def test_a_second_cancel_interrupts_the_clean_up() -> None:
    async def make(run: Run) -> str:
        try:
            await run.signal
        finally:
            run.say("clean-up")
            await run.other
        return "result"

    run = await started(make)
    await in_callback(run.runner.cancel)
    assert (run.said, run.runner.is_done) == (["clean-up"], False)
    await in_callback(run.runner.cancel)
    assert run.error is asyncio.CancelledError


async def test_a_cancel_that_comes_too_late_for_its_turn_changes_nothing() -> None:
    run = await started(on_signal)
    run.signal.set()
    run.runner.cancel()  # both in one turn: the end was first
    await turns()
    assert (run.error, run.ends) in [(None, 1), (asyncio.CancelledError, 1)]
    assert run.runner.is_done


async def test_what_cleans_up_may_wait_for_anything() -> None:
    async def make(run: Run) -> None:
        try:
            await run.signal
        finally:
            await asyncio.sleep(0)
            run.say("clean")

    run = await started(make)
    await in_callback(run.runner.cancel)
    assert not run.runner.is_done
    await turns()
    assert (run.said, run.error) == (["clean task"], asyncio.CancelledError)


# ---- time-outs, generators, runners in runners


@pytest.mark.parametrize("is_late", [False, True])
async def test_a_timeout_after_in_task_ends_the_wait_alone(is_late: bool) -> None:
    async def make(run: Run) -> str:
        await in_task()
        try:
            async with asyncio.timeout(0.001 if is_late else 60):
                await run.signal
        except TimeoutError:
            return "late"
        await run.other
        return "in time"

    run = await started(make)
    await turns()
    if is_late:
        await asyncio.sleep(0.01)
    else:
        run.signal.set()
        run.other.set()
    await turns()
    assert (run.runner.result(), run.ends) == ("late" if is_late else "in time", 1)


async def test_in_task_outside_of_a_runner_does_nothing() -> None:
    task = asyncio.current_task()
    await in_task()
    assert asyncio.current_task() is task


async def test_generators_run_inside_and_are_closed() -> None:
    closed: list[str] = []

    async def numbers(run: Run) -> AsyncIterator[int]:
        try:
            yield 1
            await run.signal
            yield 2
            await in_task()
            yield 3
        finally:
            closed.append("closed")

    async def make(run: Run) -> list[int]:
        return [number async for number in numbers(run)]

    run = await started(make)
    await in_callback(run.signal.set)
    await turns()
    assert (run.runner.result(), closed) == ([1, 2, 3], ["closed"])
    left = await started(make)
    await in_callback(left.runner.cancel)
    assert (left.error, closed) == (asyncio.CancelledError, ["closed"] * 2)


async def test_a_runner_may_start_and_end_inside_another() -> None:
    """What the inner one waits for does not stop the outer one, and the end of one resumes the other in one call."""
    inner = Run(on_signal)

    async def make(run: Run) -> str:
        changed = Signal()
        inner.runner._on_done = changed.set
        inner.runner.start()
        run.say("started")
        await changed
        run.say("resumed")
        return str(inner.runner.result())

    run = await started(make)
    assert (inner.said, run.said) == (["begin"], ["started"])
    await in_callback(inner.signal.set)
    assert (run.said, run.runner.result()) == (["started", "resumed"], "result")


@pytest.mark.parametrize("make_inner", [on_future, on_task])
async def test_a_runner_that_became_a_task_resumes_another_outside_of_it(
    make_inner: Callable[[Run], Made],
) -> None:
    inner = Run(make_inner)

    async def make(run: Run) -> str:
        changed = Signal()
        inner.runner._on_done = changed.set
        inner.runner.start()
        await changed
        run.say("resumed")
        return str(inner.runner.result())

    run = await started(make)
    inner.future.set_result("result")
    inner.signal.set()
    await turns(8)
    assert (run.said, run.runner.result()) == (["resumed"], "result")


async def test_inside_every_coroutine_in_a_task_all_begin_in_one() -> None:
    with every_coroutine_in_a_task():
        run = await started(on_signal)
        await turns()
    assert run.said == ["begin task"]
    await in_callback(run.signal.set)
    await turns()
    assert (run.said, run.runner.result()) == (["begin task", "end task"], "result")


# ---- memory: what is left by failures and by clients that leave would be kept until the collector runs


async def ends(signal: Signal, other: Signal) -> None:
    await signal


async def fails(signal: Signal, other: Signal) -> None:
    await signal
    raise ValueError("why")


async def fails_in_a_task(signal: Signal, other: Signal) -> None:
    await in_task()
    await signal
    raise ValueError("why")


async def is_left(signal: Signal, other: Signal) -> None:
    await other


async def is_left_in_a_task(signal: Signal, other: Signal) -> None:
    await in_task()
    await other


async def is_left_at_a_future(signal: Signal, other: Signal) -> None:
    await asyncio.get_running_loop().create_future()


@pytest.mark.parametrize("in_callbacks", [False, True])
@pytest.mark.parametrize(
    "make", [ends, fails, fails_in_a_task, is_left, is_left_in_a_task, is_left_at_a_future]
)
async def test_nothing_is_left_for_the_garbage_collector(
    make: Callable[[Signal, Signal], Made], in_callbacks: bool
) -> None:
    async def once() -> None:
        signal, ended = Signal(), Signal()
        runner = InlineRunner(make(signal, Signal()), ended.set, asyncio.get_running_loop())
        for step in (runner.start, signal.set, runner.cancel):
            if in_callbacks:
                await in_callback(step)
            else:
                step()
            await turns(3)
        assert (runner.is_done, ended.is_set) == (True, True)

    await once()
    gc.collect()
    gc.disable()
    try:
        for _ in range(10):
            await once()
        assert gc.collect() == 0
    finally:
        gc.enable()
