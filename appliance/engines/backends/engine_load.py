"""The load of one server by its latest metrics page, and how much of that still counts. Pure."""

import math
from dataclasses import dataclass

FULL_S = 1.0  # a server that refused a request as full gets none for so long, unless it sent Retry-After
MAX_FULL_S = 60.0
STALE_INTERVALS = 2  # the numbers of a page that is older count less and less, over as many intervals again


@dataclass(frozen=True, slots=True)
class ScrapedPage:
    """A server's metrics page as it was at `at_s` (monotonic)."""

    raw: bytes
    is_openmetrics: bool
    at_s: float


@dataclass(slots=True)
class EngineLoad:
    """The load that the engine reported, and how our own requests have changed since then.

    Attributes:
        running: Requests that it works on, by its own count; None = unknown.
        waiting: Requests that wait inside it; None = unknown.
        note: `ok`, `off`, or what is wrong with its page.
        page: The page itself; None = it could not be read.
        read_at_s: When it was read, monotonic.
        external_read: Requests at the server that were not ours when the page was read.
        ended_since: Our requests that ended since then.
        full_until_s: Monotonic; until then it gets no request because it refused one as full.
    """

    running: float | None = None
    waiting: float | None = None
    note: str = "off"
    page: ScrapedPage | None = None
    read_at_s: float = -math.inf
    external_read: float = 0.0
    ended_since: int = 0
    full_until_s: float = 0.0

    def update(
        self, running: float | None, waiting: float | None, note: str, *, own: int, now_s: float
    ) -> None:
        """Take the engine's own numbers.

        Args:
            running: Requests that it works on; None = unknown.
            waiting: Requests that wait inside it; None = unknown. With both unknown only our counts decide.
            note: See the class.
            own: Our own requests in flight.
            now_s: Monotonic seconds.
        """
        self.note, self.running, self.waiting = note, running, waiting
        if running is None and waiting is None:
            self.external_read = 0.0
            return
        self.read_at_s = now_s
        self.ended_since = 0
        self.external_read = max(0.0, (running or 0.0) + (waiting or 0.0) - own)

    def external(self, now_s: float, interval_s: float) -> float:
        """Estimate the requests at the server that are not ours; they count less once its page is stale.

        Args:
            now_s: Monotonic seconds.
            interval_s: The time between two probes.
        """
        intervals = (now_s - self.read_at_s) / interval_s - STALE_INTERVALS
        if intervals <= 0:
            return self.external_read
        return max(0.0, self.external_read * (1 - intervals / STALE_INTERVALS))

    def is_queueing(self, now_s: float, interval_s: float, most_waiting: int) -> bool:
        """Whether a page that is not stale shows `most_waiting` requests or more in its own queue."""
        return (
            self.waiting is not None
            and self.waiting - self.ended_since >= most_waiting
            and now_s - self.read_at_s < interval_s * STALE_INTERVALS
        )

    def mark_full(self, now_s: float, retry_after_s: float | None) -> None:
        """Record that the server refused a request as full; `retry_after_s` is its Retry-After."""
        self.full_until_s = now_s + min(retry_after_s or FULL_S, MAX_FULL_S)

    def age_s(self, now_s: float) -> float | None:
        """Return the age of the numbers in seconds; None = there are none."""
        return round(now_s - self.read_at_s, 3) if math.isfinite(self.read_at_s) else None
