"""The one place that reads the time, so that tests can provide a clock of their own."""

import re
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    """Two readings: seconds since 1970 for people, and a monotonic one for durations."""

    def now_s(self) -> float:
        """Return seconds since 1970."""

    def monotonic_s(self) -> float:
        """Return seconds from an arbitrary start; they never go back."""


class SystemClock:
    """The machine's own clock."""

    now_s = staticmethod(time.time)  # noqa: TID251 - this is the one place
    monotonic_s = staticmethod(time.monotonic)


@dataclass
class FakeClock:
    """A clock that moves only when it is advanced: for tests of decisions that depend on time."""

    at_s: float = 1_800_000_000.0
    elapsed_s: float = field(default=0.0)

    def now_s(self) -> float:
        """Return seconds since 1970."""
        return self.at_s + self.elapsed_s

    def monotonic_s(self) -> float:
        """Return the seconds that it was advanced."""
        return self.elapsed_s

    def advance(self, seconds: float) -> None:
        """Move the time on."""
        self.elapsed_s += seconds


def format_rfc3339(at_s: float, *, fraction_digits: int = 6) -> str:
    """Render a time as RFC 3339 in UTC, `2026-11-20T10:11:12.123456Z`.

    Args:
        at_s: Seconds since 1970.
        fraction_digits: Of the second, 1 to 6.
    """
    text = datetime.fromtimestamp(at_s, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")
    return text[: -(6 - fraction_digits)] + "Z" if fraction_digits < 6 else text + "Z"


def format_rfc3339_ms(at_ms: int) -> str:
    """Render a time as RFC 3339 in UTC with milliseconds, `2026-11-20T10:11:12.123Z`; epoch milliseconds."""
    return format_rfc3339(at_ms / 1000, fraction_digits=3)


_AGO = re.compile(r"(\d{1,9})(s|m|h|d)")
_UNIT_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def parse_moment_s(text: str, now_s: float) -> float:
    """Read a moment: RFC 3339 (UTC if it names no zone), seconds since 1970, or how long ago (`10m`).

    Args:
        text: The moment.
        now_s: The present time, seconds since 1970.

    Returns:
        Seconds since 1970.

    Raises:
        ValueError: It is none of these.
    """
    if ago := _AGO.fullmatch(text):
        return now_s - int(ago.group(1)) * _UNIT_S[ago.group(2)]
    if re.fullmatch(r"\d{1,12}(\.\d{1,9})?", text):
        return float(text)
    moment = datetime.fromisoformat(text)
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
