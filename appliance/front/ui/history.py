"""The last hour in samples of ten seconds, and what became of models: for the pictures of the web UI.

Everything is in memory and bounded; a restart begins anew.
"""

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from appliance.base.clock import Clock

SAMPLE_S: Final = 10.0
MAX_SAMPLES: Final = 360
MAX_MARKS: Final = 1000
MAX_BACKENDS: Final = 16  # of one sample; the rest is left out


@dataclass(frozen=True, slots=True)
class LoadTotals:
    """Counters since the start, and what is under way now.

    Attributes:
        requests: That were sent to models.
        errors: Of these, those that ended with a status from 500 on.
        tokens: Generated ones.
        by_backend: Requests by the backend that was chosen.
        running: Requests under way.
        queued: Of these, those in a queue.
    """

    requests: float = 0.0
    errors: float = 0.0
    tokens: float = 0.0
    by_backend: dict[str, float] = field(default_factory=dict)
    running: int = 0
    queued: int = 0


class NotedModel(Protocol):
    """What of a model is noted."""

    @property
    def alias(self) -> str:
        """Its name."""
        ...

    @property
    def status(self) -> str:
        """What became of it."""
        ...


class History:
    """Samples and marks.

    Args:
        read_totals: Returns the counters.
        clock: The time.
    """

    def __init__(self, read_totals: Callable[[], LoadTotals], *, clock: Clock) -> None:
        self._read_totals = read_totals
        self._clock = clock
        self._former: LoadTotals | None = None
        self._former_s = 0.0
        self._samples: deque[dict[str, Any]] = deque(maxlen=MAX_SAMPLES)
        self._marks: deque[dict[str, Any]] = deque(maxlen=MAX_MARKS)
        self._statuses: dict[str, str] = {}

    async def sample(self) -> None:
        """Take one sample: what happened since the former one."""
        now, now_s = self._read_totals(), self._clock.monotonic_s()
        former, span_s = self._former, now_s - self._former_s
        self._former, self._former_s = now, now_s
        if former is None or span_s <= 0:
            return
        by_backend = {
            name: round((count - former.by_backend.get(name, 0.0)) / span_s, 3)
            for name, count in list(now.by_backend.items())[:MAX_BACKENDS]
            if count > former.by_backend.get(name, 0.0)
        }
        self._samples.append(
            {
                "at_s": round(self._clock.now_s(), 1),
                "requests": _rate(now.requests, former.requests, span_s),
                "errors": _rate(now.errors, former.errors, span_s),
                "tokens": _rate(now.tokens, former.tokens, span_s),
                "running": now.running,
                "queued": now.queued,
                "backends": by_backend,
            }
        )

    def note_models(self, models: Iterable[NotedModel]) -> None:
        """Note what changed among the models since the last call."""
        now = {one.alias: one.status for one in models}
        at_s = round(self._clock.now_s(), 1)
        for alias, status in now.items():
            if self._statuses.get(alias, "off") != status:
                self._marks.append({"at_s": at_s, "model": alias, "status": status})
        for alias in self._statuses.keys() - now.keys():
            self._marks.append({"at_s": at_s, "model": alias, "status": "off"})
        self._statuses = now

    def as_dict(self) -> dict[str, Any]:
        """Return `{every_s, samples, marks}`; rates are per second."""
        return {"every_s": SAMPLE_S, "samples": list(self._samples), "marks": list(self._marks)}


def _rate(now: float, former: float, span_s: float) -> float:
    """Return how much was added per second."""
    return round(max(0.0, now - former) / span_s, 3)
