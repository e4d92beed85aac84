"""Response times, measured between client and engine: for engines that measure none themselves.

Four histograms for each backend and model, with vLLM's bounds, so that engines compare. One `add` at the end
of a response is all that it costs. Rendered as metrics by engines/overview.py.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

from appliance.base.metrics.histogram import PlainHistogram

FIRST_TOKEN_S = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160,
    640, 2560,
)  # fmt: skip
PER_TOKEN_S = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5,
    10, 20, 40, 80,
)  # fmt: skip
WHOLE_S = (0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680)
QUEUE_S = (0.001, 0.005, 0.01, 0.05, 0.1, *WHOLE_S)
MAX_ROWS = 500  # a further name is counted as OTHER_MODEL
OTHER_MODEL = "other"


@dataclass(slots=True)
class ModelLatencies:
    """The response times of one model on one backend."""

    ttft: PlainHistogram = field(default_factory=lambda: PlainHistogram(FIRST_TOKEN_S))
    tpot: PlainHistogram = field(default_factory=lambda: PlainHistogram(PER_TOKEN_S))
    e2e: PlainHistogram = field(default_factory=lambda: PlainHistogram(WHOLE_S))
    queue: PlainHistogram = field(default_factory=lambda: PlainHistogram(QUEUE_S))


class Latencies:
    """All rows. The times to the first token and to the end include the queue time, as engines' own do."""

    def __init__(self) -> None:
        self._rows: dict[tuple[str, str], ModelLatencies] = {}

    def add(
        self,
        backend: str,
        model: str,
        *,
        queue_s: float,
        first_s: float | None,
        whole_s: float,
        tokens: int | None,
    ) -> None:
        """Add one response that was completed.

        Args:
            backend: Its name.
            model: The model's name.
            queue_s: Seconds in the queue.
            first_s: Seconds from sending to the first event; None = the response was not streamed.
            whole_s: Seconds from sending to the end.
            tokens: How many were generated; None = unknown.
        """
        key = (backend, model)
        row = self._rows.get(key)
        if row is None:
            if len(self._rows) >= MAX_ROWS:
                key = (backend, OTHER_MODEL)
            row = self._rows.setdefault(key, ModelLatencies())
        row.queue.observe(queue_s)
        row.e2e.observe(queue_s + whole_s)
        if first_s is not None:
            row.ttft.observe(queue_s + first_s)
            if tokens is not None and tokens > 1:
                row.tpot.observe(max(0.0, whole_s - first_s) / (tokens - 1))

    def forget(self, backend: str) -> None:
        """Drop the rows of a backend that was removed."""
        for key in [key for key in self._rows if key[0] == backend]:
            del self._rows[key]

    def __iter__(self) -> Iterator[tuple[str, str, ModelLatencies]]:
        return ((backend, model, row) for (backend, model), row in self._rows.items())
