"""One piece of work for all who ask for it at the same time: whoever comes while it is under way waits for that one's result."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from appliance.base.errors import ApplianceError, Internal
from appliance.base.logs import get_logger
from appliance.base.tasks import Tasks

log = get_logger("tasks")

Result = TypeVar("Result")


class SingleFlight(Generic[Result]):
    """Calls `work` when asked, never twice at a time. It goes on when those who asked have left, so it must end by itself.

    Takes   work: its errors are raised to everybody who waits; one that is not ours is logged, and told as Internal
    """

    def __init__(self, work: Callable[[], Awaitable[Result]], tasks: Tasks, *, name: str) -> None:
        self._work = work
        self._tasks = tasks
        self._name = name
        self._flight: asyncio.Task[Result | ApplianceError] | None = None

    async def get(self) -> Result:
        """Give the result of the run that is under way, or of a new one.

        Raises  ApplianceError: what the work raised
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
