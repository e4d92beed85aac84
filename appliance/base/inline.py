"""Coroutines that run inside the callbacks of what they wait for: no task, no future, no turn of the loop.

The code of a hot request is a plain coroutine, driven in one of two ways:

    inline    by `InlineRunner`: the bytes of a client start it, those of the upstream server resume it, in
              the transport's callback. It may wait for a `Signal` only.
    task      as usual. An inline coroutine becomes a task when it waits for anything else (a future, a
              queue), or says so by `in_task` before code that needs one, such as `asyncio.timeout`.

Both run the very same code, so there is no second copy of any decision.
"""

import asyncio
import types
from collections.abc import Callable, Coroutine, Generator, Iterator
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Signal:
    """Something that happens once, and that one coroutine at most waits for.

    Attributes:
        is_set: It has happened.
    """

    __slots__ = ("_waiter", "is_set")

    def __init__(self) -> None:
        self.is_set = False
        self._waiter: Callable[[], None] | None = None

    def set(self) -> None:
        """Say that it has happened; resumes who waits, in this very call where that runs inline."""
        if not self.is_set:
            self.is_set = True
            waiter, self._waiter = self._waiter, None
            if waiter is not None:
                waiter()

    def __await__(self) -> Generator[Any, None, None]:
        if _inline.runner is not None:
            try:
                while not self.is_set:
                    yield self  # its runner sets `_waiter`
            finally:
                self._waiter = None  # it refers to the coroutine, whose frames may refer to the signal
        elif not self.is_set:
            future = asyncio.get_running_loop().create_future()
            self._waiter = lambda: None if future.done() else future.set_result(None)
            try:
                yield from future
            finally:
                self._waiter = None


class _Inline:
    """What runs at this moment: an inline coroutine's runner, or None."""

    __slots__ = ("is_off", "runner")

    def __init__(self) -> None:
        self.runner: InlineRunner[Any] | None = None
        self.is_off = False


_inline = _Inline()
_NEEDS_TASK, _BEGINS = object(), object()
_OWN_GLOBALS = globals()


@contextmanager
def every_coroutine_in_a_task() -> Iterator[None]:
    """Begin every coroutine in a task, while the context is open: for tests that compare both ways."""
    _inline.is_off = True
    try:
        yield
    finally:
        _inline.is_off = False


@types.coroutine
def in_task() -> Generator[Any, None, None]:
    """Go on in a task, if the coroutine runs inline; otherwise do nothing."""
    if _inline.runner is not None:
        yield _NEEDS_TASK


class InlineRunner(Generic[T]):
    """Runs one coroutine inline, or in a task once it needs one.

    Args:
        coroutine: Not started yet.
        on_done: Called when it has ended, whichever way.
        loop: The running loop.

    Attributes:
        is_done: It has ended.
        error: What it raised; None = nothing. Who reads it decides what that means.
    """

    __slots__ = (
        "_coroutine",
        "_is_adopted",
        "_is_cancelled",
        "_is_due",
        "_is_stepping",
        "_loop",
        "_on_done",
        "_result",
        "_task",
        "error",
        "is_done",
    )

    def __init__(
        self, coroutine: Coroutine[Any, Any, T], on_done: Callable[[], None], loop: asyncio.AbstractEventLoop
    ) -> None:
        self._coroutine = coroutine
        self._on_done: Callable[[], None] | None = on_done
        self._loop = loop
        self._task: asyncio.Task[None] | None = None
        self._is_stepping = self._is_cancelled = self._is_adopted = self._is_due = False
        self._result: T | None = None
        self.is_done = False
        self.error: BaseException | None = None

    def result(self) -> T:
        """Return what the coroutine returned, or raise what it raised."""
        if self.error is not None:
            raise self.error
        return self._result  # type: ignore[return-value]  # of type T once it is done

    def start(self) -> None:
        """Begin: now, or in the next turn of the loop where a task calls."""
        if _inline.is_off:
            self._task = self._loop.create_task(self._go_on(_BEGINS))
        elif asyncio.current_task(self._loop) is None:
            self._step()
        else:
            self._is_due = True
            self._loop.call_soon(self._begin)

    def cancel(self) -> None:
        """Raise CancelledError in the coroutine where it waits, unless it has ended.

        Unlike a task's, it begins in any case: who has started it can rely on its own accounts.
        """
        if self.is_done:
            return
        if self._is_adopted and self._task is not None:
            self._task.cancel()
        elif self._is_stepping or self._is_due or self._task is not None:
            self._is_cancelled = True  # a task that is cancelled before its first step runs nothing
        elif asyncio.current_task(self._loop) is None:
            self._step(asyncio.CancelledError())
        elif not self._is_cancelled:  # as with a task, two calls before it runs again cancel it once
            self._is_cancelled = True
            self._loop.call_soon(self._cancel_now)

    def _cancel_now(self) -> None:
        """Raise the CancelledError that `cancel` has promised, unless the coroutine has met it already."""
        if self._is_cancelled and self._task is None:
            self._is_cancelled = False
            self._step(asyncio.CancelledError())

    def _begin(self) -> None:
        self._is_due = False
        self._step()

    def _resume(self) -> None:
        # Inside another task, what asks for its task would get that one.
        if asyncio.current_task(self._loop) is None:
            self._step()
        else:
            self._loop.call_soon(self._step)

    def _step(self, error: BaseException | None = None) -> None:
        """Run the coroutine until it waits or ends."""
        if self.is_done or self._task is not None or self._is_stepping:
            return
        outer, _inline.runner = _inline.runner, self
        self._is_stepping = True
        try:
            waits_for = self._coroutine.send(None) if error is None else self._coroutine.throw(error)
        except StopIteration as stop:
            self._result = stop.value
            waits_for = None
            self.is_done = True
        except BaseException as exc:
            self.error = _without_own_frames(exc)
            waits_for = None
            self.is_done = True
        finally:
            _inline.runner = outer
            self._is_stepping = False
        if self.is_done:
            self._finish()
        elif type(waits_for) is Signal:
            waits_for._waiter = self._resume
            if self._is_cancelled:
                self._is_cancelled = False
                self._step(asyncio.CancelledError())
        else:
            self._task = self._loop.create_task(self._go_on(waits_for))

    async def _go_on(self, waits_for: Any) -> None:
        """Run the rest of the coroutine in this task."""
        self._is_adopted = True
        error = None
        if self._is_cancelled and waits_for is _NEEDS_TASK:
            error = asyncio.CancelledError()
        elif self._is_cancelled and self._task is not None:  # what it waits for is cancelled, too
            self._task.cancel()
        try:
            self._result = await _adopt(self._coroutine, waits_for, error)
        except BaseException as exc:
            self.error = _without_own_frames(exc)
        self.is_done = True
        self._finish()

    def _finish(self) -> None:
        on_done, self._on_done = self._on_done, None  # who is called usually refers to this runner
        if on_done is not None:
            on_done()


def _without_own_frames(error: BaseException) -> BaseException:
    """Drop the frames of this module from a traceback's beginning: they hold the runner that keeps it."""
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_globals is _OWN_GLOBALS:
        trace = trace.tb_next
    return error.with_traceback(trace)


@types.coroutine
def _adopt(
    coroutine: Coroutine[Any, Any, T], waits_for: Any, error: BaseException | None
) -> Generator[Any, Any, T]:
    """Go on with a coroutine that has been started, from what it waits for on, or with an error."""
    try:
        if error is not None:
            waits_for = coroutine.throw(error)
        elif waits_for is _NEEDS_TASK or waits_for is _BEGINS:
            waits_for = coroutine.send(None)
        while True:
            try:
                value = yield waits_for
            except BaseException as raised:
                waits_for = coroutine.throw(raised)
            else:
                waits_for = coroutine.send(value)
    except StopIteration as stop:
        result: T = stop.value
        return result
