"""The time of the stand-ins: it can be advanced, and run faster than the machine's own."""

from appliance.base.clock import Clock

MAX_SPEED = 100_000.0
MAX_ADVANCE_S = 400 * 86_400.0


class TwinClock:
    """A clock over another one: now = its start + what passed since × speed + what it was advanced by.

    Args:
        clock: The clock below it.
        speed: Seconds that pass here in one second there; 0 = it stands still.
    """

    def __init__(self, clock: Clock, *, speed: float = 1.0) -> None:
        self._clock = clock
        self._start_s = clock.now_s()
        self._passed_s = 0.0  # up to `_since_s`
        self._since_s = clock.monotonic_s()
        self.speed = speed

    def now_s(self) -> float:
        """Return seconds since 1970."""
        return self._start_s + self.monotonic_s()

    def now_ms(self) -> int:
        """Return milliseconds since 1970."""
        return round(self.now_s() * 1000)

    def monotonic_s(self) -> float:
        """Return the seconds that have passed here."""
        return self._passed_s + (self._clock.monotonic_s() - self._since_s) * self.speed

    def advance(self, seconds: float) -> None:
        """Move the time on."""
        self._passed_s += seconds

    def set_speed(self, speed: float) -> None:
        """Change how fast the time passes from now on."""
        self._passed_s, self._since_s = self.monotonic_s(), self._clock.monotonic_s()
        self.speed = speed
