"""A histogram's plain numbers: counted on the event loop, read when metrics are rendered."""

from bisect import bisect_left
from collections.abc import Sequence


class PlainHistogram:
    """How many values fell between two bounds each (the last: above all of them), and their sum.

    Args:
        bounds: Upper bounds, rising.
    """

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds, self.counts, self.total = bounds, [0] * (len(bounds) + 1), 0.0

    def observe(self, value: float) -> None:
        """Count a value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value
