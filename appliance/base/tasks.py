"""Background tasks that cannot die unnoticed. Everything that runs beside a request is started here."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from appliance.base.logs import get_logger

log = get_logger("tasks")


class Tasks:
    """A set of background tasks with one owner; leaving the context cancels them and waits for their end.

    Args:
        on_death: Called with (name, exception) when a task was ended by an exception; None = only logged.
    """

    def __init__(self, on_death: Callable[[str, BaseException], None] | None = None) -> None:
        self._running: set[asyncio.Task[Any]] = set()
        self._on_death = on_death

    def start(self, work: Coroutine[Any, Any, Any], *, name: str) -> asyncio.Task[Any]:
        """Run `work` in the background; an exception that ends it is logged and passed to `on_death`."""
        task = asyncio.create_task(work, name=name)  # noqa: TID251 - this is the one place
        self._running.add(task)
        task.add_done_callback(self._ended)
        return task

    def every(self, seconds: float, action: Callable[[], Awaitable[None]], *, name: str) -> asyncio.Task[Any]:
        """Call `action` every `seconds`, counted from its end; a call that fails is logged."""

        async def rounds() -> None:
            while True:
                try:
                    await action()
                except Exception:
                    log.exception("round_failed", task=name)
                await asyncio.sleep(seconds)

        return self.start(rounds(), name=name)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        if task.cancelled() or (error := task.exception()) is None:
            return
        log.error("task_died", task=task.get_name(), error=repr(error), exc_info=error)
        if self._on_death is not None:
            self._on_death(task.get_name(), error)

    async def close(self) -> None:
        """Cancel all tasks and wait until each has ended."""
        for task in (running := list(self._running)):
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    async def __aenter__(self) -> "Tasks":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
