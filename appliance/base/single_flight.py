"""One run of a piece of work for all callers at the same time: later callers wait for the run under way."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from appliance.base.errors import ApplianceError, Internal
from appliance.base.logs import get_logger
from appliance.base.tasks import Tasks

log = get_logger("tasks")

Result = TypeVar("Result")


class SingleFlight(Generic[Result]):
    """Runs `work` on demand, never twice at a time.

    A run continues when its callers leave, so it must end by itself.

    Args:
        work: Its errors are raised to every caller; one that is not an ApplianceError is logged and becomes
            Internal.
        tasks: Where it runs.
        name: Of the task, in logs.
    """

    def __init__(self, work: Callable[[], Awaitable[Result]], tasks: Tasks, *, name: str) -> None:
        self._work = work
        self._tasks = tasks
        self._name = name
        self._flight: asyncio.Task[Result | ApplianceError] | None = None

    async def get(self) -> Result:
        """Return the result of the run under way, or of a new one.

        Raises:
            ApplianceError: What the work raised.
        """
        if self._flight is None or self._flight.done():
            self._flight = self._tasks.start(self._run(), name=self._name)
        result = await asyncio.shield(self._flight)
        if isinstance(result, ApplianceError):
            raise result.with_traceback(None)
        return result

    async def _run(self) -> Result | ApplianceError:
        try:
            return await self._work()
        except ApplianceError as exc:
            return exc
        except Exception as exc:
            log.exception("shared_work_failed", task=self._name, error=repr(exc))
            return Internal("Something failed inside the appliance; its log has the details.")
