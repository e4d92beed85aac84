"""How callers limit the time of a request: `timeout` of a body, the header `X-Timelimit`.

Numbers from a million on are nanoseconds, as Go writes durations into JSON; smaller ones are seconds.
"""

import math
import re
from typing import Any, Final

from appliance.base.errors import Invalid, TimedOut
from appliance.base.go_durations import sum_terms_s

HEADER: Final = "x-timelimit"
FIRST_NANOSECONDS: Final = 1_000_000
MAX_S: Final = 31_536_000.0
MAX_CHARACTERS: Final = 64
_NUMBER: Final = re.compile(r"\d{1,19}(\.\d{1,9})?")
_DURATION: Final = re.compile(r"(?:\d{1,12}(?:\.\d{1,9})?(?:ns|us|µs|μs|ms|s|m|h))+")


def parse_time_limit_s(value: Any, *, name: str = "X-Timelimit") -> float | None:
    """Return the seconds of a time limit.

    1. absent, "" or 0                       → None, no limit
    2. a number, also as a text              → nanoseconds from 1000000 on, else seconds
    3. Go's `30s`, `1m30s`, `500ms`          → that
    4. anything else, or more than a year    → refused

    Args:
        value: Of JSON, or the text of a header.
        name: Of the field, for the refusal.

    Raises:
        Invalid: Case 4.
    """
    if isinstance(value, str):
        value = value.strip()[: MAX_CHARACTERS + 1]
    if value is None or value == "":  # 1
        return None
    seconds = math.nan
    if isinstance(value, int | float) and not isinstance(value, bool):  # 2
        seconds = _from_number(float(value)) if abs(value) < 1e19 else math.nan
    elif isinstance(value, str) and len(value) <= MAX_CHARACTERS:
        if _NUMBER.fullmatch(value):  # 2
            seconds = _from_number(float(value))
        elif _DURATION.fullmatch(value):  # 3
            seconds = sum_terms_s(value)
    if seconds == 0:
        return None
    if not 0 < seconds <= MAX_S:  # 4, also what is no number
        raise Invalid(
            f"`{name}` must be a time of up to a year, not {str(value)[:40]!r}: seconds, nanoseconds from "
            "1000000 on, or a duration such as 500ms, 30s, 1m30s.",
            param=name,
            code="invalid_time_limit",
        )
    return seconds


def _from_number(number: float) -> float:
    return number / 1e9 if number >= FIRST_NANOSECONDS else number


def time_limit_exceeded() -> TimedOut:
    """Return the error of a request whose time is over."""
    return TimedOut("Time limit exceeded", code="time_limit_exceeded")
