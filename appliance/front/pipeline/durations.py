"""Durations in request bodies: seconds, or Go's `5m`, `1h30m`."""

import re
from typing import Any

from appliance.base.errors import Invalid
from appliance.base.go_durations import sum_terms_s

FOREVER = -1.0  # seconds; the model manager reads it as: never unload
NEVER_AFTER_S = 2**63 / 1e9  # 292 years: the longest time that Ollama can hold; it means never
_DURATION = re.compile(r"[+-]?(?:(?:\d+(?:\.\d*)?|\.\d+)(?:ns|us|µs|μs|ms|s|m|h))+")


def parse_keep_alive_s(value: Any) -> float | None:
    """Return the seconds of `keep_alive`.

    Args:
        value: Seconds as a number, or a duration such as "5m", "1h30m", "-1s", "0".

    Returns:
        Seconds; FOREVER for a negative or endless time; None where it is absent.

    Raises:
        Invalid: It is neither a number nor a duration.
    """
    if value is None:
        return None
    is_nan = value != value  # some clients write NaN into JSON
    if isinstance(value, (int, float)) and not isinstance(value, bool) and not is_nan:
        return float(value) if 0 <= value <= NEVER_AFTER_S else FOREVER
    if isinstance(value, str) and (value.lstrip("+-") == "0" or _DURATION.fullmatch(value)):
        total = sum_terms_s(value)
        return FOREVER if total > NEVER_AFTER_S or (value.startswith("-") and total) else total
    raise Invalid(
        '`keep_alive` must be seconds as a number, or a duration such as "5m" or "-1s".', param="keep_alive"
    )
