"""Asking again: after how long, and when no more."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

from appliance.base.errors import ApplianceError, TimedOut, UpstreamFailed
from appliance.downloads.sources.contract import SourceTimeouts

Given = TypeVar("Given")


class RetryCounter:
    """Counts the attempts in a row that brought nothing."""

    def __init__(self, timeouts: SourceTimeouts) -> None:
        self._timeouts = timeouts
        self.failed = 0

    def progressed(self) -> None:
        self.failed = 0

    def pause_s(self, error: ApplianceError) -> float | None:
        """Give how long to wait before the next attempt; None = there is none: asking again cannot help, or has not."""
        self.failed += 1
        if not error.retryable or self.failed >= self._timeouts.tries:
            return None
        doubled = self._timeouts.first_pause_s * 2.0 ** (self.failed - 1)
        pause = (
            error.retry_after_s if error.retry_after_s is not None else doubled * random.uniform(0.75, 1.25)
        )
        return min(pause, self._timeouts.longest_pause_s)

    def final(self, error: ApplianceError, note: str = "") -> ApplianceError:
        """Give the error to be raised at the end, which says how often it was tried."""
        if not error.retryable:
            return error
        kind = TimedOut if isinstance(error, TimedOut) else UpstreamFailed
        return kind(
            f"{error.message.rstrip('.')}; tried {self.failed} times in a row.{note}", code=error.code
        )


async def retry(
    ask: Callable[[], Awaitable[Given]], timeouts: SourceTimeouts, on_failure: Callable[[str], None]
) -> Given:
    """Ask until there is an answer, or asking again cannot help.

    Raises  ApplianceError
    """
    retries = RetryCounter(timeouts)
    while True:
        try:
            return await ask()
        except ApplianceError as exc:
            pause = retries.pause_s(exc)
            if pause is None:
                raise retries.final(exc) from exc
            on_failure(exc.message)
        await asyncio.sleep(pause)
