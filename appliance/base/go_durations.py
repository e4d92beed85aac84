"""Durations as Go writes them: `1m30s`, `1.5h`, `250ms`. Their readers say which of them are allowed."""

import re
from typing import Final

_TERM: Final = re.compile(r"([\d.]+)(ns|us|µs|μs|ms|s|m|h)")
_UNIT_S: Final = {
    "ns": 1e-9,
    "us": 1e-6,
    "µs": 1e-6,
    "μs": 1e-6,
    "ms": 1e-3,
    "s": 1.0,
    "m": 60.0,
    "h": 3600.0,
}


def sum_terms_s(text: str) -> float:
    """Return the seconds of a duration whose form was checked; a sign does not count."""
    return sum(float(number) * _UNIT_S[unit] for number, unit in _TERM.findall(text))
