"""A histogram's numbers, plain: counted on the event loop, read by whoever writes metrics (tallies.py, engines/overview.py)."""

from bisect import bisect_left
from collections.abc import Sequence


class PlainHistogram:
    """How many values were at most each bound and above the one before it (the last: above all), and their sum.

    Takes   bounds: rising
    """

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds, self.counts, self.total = bounds, [0] * (len(bounds) + 1), 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value
