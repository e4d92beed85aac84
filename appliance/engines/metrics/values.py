"""Single values from a metrics page of any generation of an engine. Pure.

A page of vLLM has a hundred kilobytes of histograms. Only two gauges of it are needed every few seconds: they
are searched in the bytes, and the rest is not parsed.
"""

import math
import re
from functools import lru_cache

MAX_SHOWN_BYTES = 40


class BadMetrics(ValueError):
    """A value on the page is not a number that a gauge can have."""


def read_gauge(page: bytes, names: tuple[str, ...]) -> float | None:
    """Return the first metric of `names` that the page has, summed over its labels; None = it has none.

    Args:
        page: As it came.
        names: `prefix:name`; `prefix_name`, and either with `_total` at the end, are found as well.

    Raises:
        BadMetrics: Its value is not a number, not finite, or negative.
    """
    for name in names:
        found = _pattern(name).findall(page)
        if found:
            try:
                values = [float(value) for value in found]
            except ValueError:
                raise BadMetrics(f"{name} is {found[0][:MAX_SHOWN_BYTES]!r}, not a number") from None
            if not all(math.isfinite(value) and value >= 0 for value in values):
                raise BadMetrics(f"{name} is {found[0][:MAX_SHOWN_BYTES]!r}, not a finite number >= 0")
            return sum(values)
    return None


@lru_cache(maxsize=64)
def _pattern(name: str) -> re.Pattern[bytes]:
    prefix, _, rest = name.partition(":")
    return re.compile(
        rb"^%b[:_]%b(?:_total)?(?:\{[^\n}]*\})?[ \t]+(\S+)"
        % (re.escape(prefix.encode()), re.escape(rest.encode())),
        re.MULTILINE,
    )
