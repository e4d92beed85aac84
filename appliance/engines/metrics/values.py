"""Single values out of an engine's metrics page, whatever generation of the engine wrote it. Pure.

A page of vLLM is a hundred kilobytes of histograms; two gauges are wanted of it every few seconds, so they are searched for
in the bytes instead of parsing it all.
"""

import math
import re
from functools import lru_cache


class BadMetrics(ValueError):
    """The page is no metrics page, or a value in it is no number."""


def gauge(page: bytes, names: tuple[str, ...]) -> float | None:
    """Give the first metric of `names` that the page has, summed over its labels; None = it has none of them.

    Takes   names: `prefix:name`; `prefix_name` and a `_total` at the end are found as well
    Raises  BadMetrics: its value is no finite number
    """
    for name in names:
        found = _pattern(name).findall(page)
        if found:
            try:
                values = [float(value) for value in found]
            except ValueError:
                raise BadMetrics(f"{name} is {found[0][:40]!r}, which is no number") from None
            if not all(math.isfinite(value) and value >= 0 for value in values):
                raise BadMetrics(f"{name} is {found[0][:40]!r}, which cannot be")
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
