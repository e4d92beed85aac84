"""Whether and when a failed attempt is repeated."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

from appliance.base.errors import ApplianceError, TimedOut, UpstreamFailed
from appliance.downloads.sources.contract import SourceTimeouts

ResultT = TypeVar("ResultT")


class RetryCounter:
    """Counts the attempts in a row that received no data."""

    def __init__(self, timeouts: SourceTimeouts) -> None:
        self._timeouts = timeouts
        self.failed = 0

    def progressed(self) -> None:
        """Reset the count: data was received."""
        self.failed = 0

    def next_pause_s(self, error: ApplianceError) -> float | None:
        """Return the seconds before the next attempt; None = it cannot help, or there were enough."""
        self.failed += 1
        if not error.retryable or self.failed >= self._timeouts.tries:
            return None
        pause_s = error.retry_after_s
        if pause_s is None:
            doubled_s = self._timeouts.first_pause_s * 2.0 ** (self.failed - 1)
            pause_s = doubled_s * random.uniform(0.75, 1.25)
        return min(pause_s, self._timeouts.longest_pause_s)

    def final_error(self, error: ApplianceError, note: str = "") -> ApplianceError:
        """Return the error to raise after the last attempt; it contains the number of attempts."""
        if not error.retryable:
            return error
        kind = TimedOut if isinstance(error, TimedOut) else UpstreamFailed
        return kind(
            f"{error.message.rstrip('.')}; tried {self.failed} times in a row.{note}", code=error.code
        )


async def retry(
    attempt: Callable[[], Awaitable[ResultT]], timeouts: SourceTimeouts, on_failure: Callable[[str], None]
) -> ResultT:
    """Repeat an attempt until it succeeds or a further one cannot help.

    Args:
        attempt: The attempt, called again for each repetition.
        timeouts: How often, and how long the pauses are.
        on_failure: Called with the reason of each failure that is followed by another attempt.

    Raises:
        ApplianceError: The last failure.
    """
    retries = RetryCounter(timeouts)
    while True:
        try:
            return await attempt()
        except ApplianceError as exc:
            pause_s = retries.next_pause_s(exc)
            if pause_s is None:
                raise retries.final_error(exc) from exc
            on_failure(exc.message)
        await asyncio.sleep(pause_s)
