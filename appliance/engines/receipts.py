"""Receipts: what was decided for one request, and why. The last thousand are kept for the operator."""

from collections import OrderedDict
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(slots=True)
class Attempt:
    """One try at one endpoint. `outcome` is `ok` or a word for what went wrong; `status` the HTTP status, if one came."""

    endpoint: str
    outcome: str
    status: int | None = None
    ms: float = 0.0
    note: str = ""


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
    finish: str = ""  # done | client_left | cut_off | error
    error: str = ""
    status: int = 0

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
        return asdict(self)


def attempt_rows(attempts: list[Attempt]) -> list[dict[str, Any]]:
    """List attempts as error bodies show them.

    Returns:
        One object per attempt: `url`, `outcome`, and `status` and `body`, or `error` where no status came.

    Source:
        docs/compatibility.md, error bodies of the hosted API.
    """
    rows: list[dict[str, Any]] = []
    for attempt in attempts:
        row: dict[str, Any] = {"url": attempt.endpoint, "outcome": attempt.outcome}
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
