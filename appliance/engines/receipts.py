"""Receipts: what was decided for one request, and why. The last thousand are kept for the operator."""

from collections import OrderedDict
from dataclasses import asdict, dataclass, field
from typing import Any

from appliance.engines.outcome import Finish, Outcome


@dataclass(slots=True)
class Attempt:
    """One attempt at one endpoint. `status` is the HTTP status that came, None = none."""

    endpoint: str
    outcome: Outcome = Outcome.CANCELLED
    status: int | None = None
    ms: float = 0.0
    note: str = ""

    @property
    def label(self) -> str:
        """The outcome as receipts and metrics show it: `ok`, `status_502` …"""
        return self.outcome.render(self.status)


@dataclass(slots=True)
class Receipt:
    """One request's story. Times are milliseconds; `at_s` is seconds since 1970. Holds no prompt, no answer and no key."""

    id: str
    at_s: float = 0.0
    route: str = ""
    model: str = ""  # as the client asked
    public_model: str = ""  # as the reply says
    served_model: str = ""  # what really answered
    backend: str = ""
    endpoint: str = ""
    reason: str = ""  # why this backend
    pool: str = ""
    overflow: str = ""  # why the request left the pool that it was meant for; "" = it did not
    streamed: bool = False
    attempts: list[Attempt] = field(default_factory=list)
    queue_ms: float = 0.0
    upstream_ms: float = 0.0  # until the upstream's first byte
    total_ms: float = 0.0
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    finish: Finish | None = None
    error: str = ""
    status: int = 0

    def note_usage(self, usage: Any) -> None:
        """Take the token counts that an engine reported; anything but an object is passed over."""
        if isinstance(usage, dict):
            self.prompt_tokens = usage.get("prompt_tokens")
            self.completion_tokens = usage.get("completion_tokens")

    def render_header(self) -> str:
        """Give the short form for `x-appliance-receipt`: `backend=…; endpoint=…; …`."""
        return (
            f"backend={self.backend}; endpoint={self.endpoint}; model={self.served_model}; attempts={len(self.attempts)}; "
            f"queue_ms={self.queue_ms:.1f}; upstream_ms={self.upstream_ms:.1f}; reason={self.reason}"
        )

    def render_server_timing(self) -> str:
        """Give `Server-Timing`'s value, durations in milliseconds."""
        return f"queue;dur={self.queue_ms:.1f}, upstream;dur={self.upstream_ms:.1f}"

    def as_dict(self) -> dict[str, Any]:
        row = asdict(self)
        row["attempts"] = [{**asdict(attempt), "outcome": attempt.label} for attempt in self.attempts]
        row["finish"] = self.finish_label
        return row

    @property
    def finish_label(self) -> str:
        """How the request ended, as JSON and gRPC show it; "" while it runs."""
        return self.finish.value if self.finish is not None else ""


def attempt_rows(attempts: list[Attempt]) -> list[dict[str, Any]]:
    """List attempts as error bodies show them.

    Returns:
        One object per attempt: `url`, `outcome`, and `status` and `body`, or `error` where no status came.

    Source:
        docs/compatibility.md, error bodies of the hosted API.
    """
    rows: list[dict[str, Any]] = []
    for attempt in attempts:
        row: dict[str, Any] = {"url": attempt.endpoint, "outcome": attempt.label}
        if attempt.status:
            row |= {"status": attempt.status, "body": attempt.note}
        else:
            row["error"] = attempt.note
        rows.append(row)
    return rows


class Receipts:
    """The last `keep` receipts, by id."""

    def __init__(self, keep: int = 1000) -> None:
        self._keep = keep
        self._by_id: OrderedDict[str, Receipt] = OrderedDict()

    def add(self, receipt: Receipt) -> None:
        self._by_id[receipt.id] = receipt
        if len(self._by_id) > self._keep:
            self._by_id.popitem(last=False)

    def get(self, receipt_id: str) -> Receipt | None:
        return self._by_id.get(receipt_id)

    def latest(self, count: int) -> list[Receipt]:
        """Give up to `count` receipts, newest first."""
        return list(reversed(self._by_id.values()))[:count]

    def __len__(self) -> int:
        return len(self._by_id)
