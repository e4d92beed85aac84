"""How often a model is requested. Pure: the caller provides the time."""

import math

DEMAND_S = 60.0  # requests of so many seconds count as recent


class Demand:
    """A rate of requests that fades: recent requests count more."""

    __slots__ = ("_at_s", "_sum")

    def __init__(self) -> None:
        self._sum = 0.0
        self._at_s = 0.0

    def add(self, now_s: float) -> None:
        """Count one request."""
        self._sum = self._faded(now_s) + 1.0
        self._at_s = now_s

    def rate(self, now_s: float) -> float:
        """Return requests a second."""
        return self._faded(now_s) / DEMAND_S

    def _faded(self, now_s: float) -> float:
        return self._sum * math.exp(-max(0.0, now_s - self._at_s) / DEMAND_S)
