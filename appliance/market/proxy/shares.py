"""How much of the proxy one user has: requests at a time, and bytes of answers in a minute."""

from typing import Final

from appliance.base.clock import Clock
from appliance.base.errors import Exhausted

MAX_RUNNING: Final = 16
MAX_BYTES_PER_MINUTE: Final = 268_435_456
MINUTE_S: Final = 60.0


class UserShares:
    """Counts, by user.

    Args:
        clock: The time.
        running: Most requests of one user at a time.
        bytes_per_minute: Most bytes of answers to one user in a minute.
    """

    def __init__(
        self, clock: Clock, *, running: int = MAX_RUNNING, bytes_per_minute: int = MAX_BYTES_PER_MINUTE
    ) -> None:
        self._clock = clock
        self._most_running, self._most_bytes = running, bytes_per_minute
        self._running: dict[str, int] = {}
        self._bytes: dict[str, int] = {}
        self._minute = 0

    def begin(self, user_id: str) -> None:
        """Count a request of a user as running.

        Raises:
            Exhausted: There are too many, or too many bytes were passed on in this minute.
        """
        now_s = self._clock.monotonic_s()
        if self._minute != int(now_s // MINUTE_S):
            self._minute = int(now_s // MINUTE_S)
            self._bytes.clear()
        running = self._running.get(user_id, 0)
        if running >= self._most_running:
            raise Exhausted(
                f"{running} of your requests run through the proxy, the most at a time. Wait for one.",
                code="proxy_busy",
                retry_after_s=1.0,
            )
        if self._bytes.get(user_id, 0) >= self._most_bytes:
            raise Exhausted(
                f"The proxy has passed {self._most_bytes} bytes on to you in this minute, which is the most.",
                code="proxy_bytes_exceeded",
                retry_after_s=MINUTE_S - now_s % MINUTE_S,
            )
        self._running[user_id] = running + 1

    def end(self, user_id: str, size_bytes: int) -> None:
        """Count a request of a user as ended, with the bytes of its answer."""
        left = self._running.get(user_id, 0) - 1
        if left > 0:
            self._running[user_id] = left
        else:
            self._running.pop(user_id, None)
        self._bytes[user_id] = self._bytes.get(user_id, 0) + size_bytes
