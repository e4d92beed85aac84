"""Receipts: what was decided for one request, and why. The latest ones are kept for the operator."""

import asyncio
import re
from collections import deque
from collections.abc import AsyncGenerator
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import Any
from urllib.parse import urlsplit

from appliance.base.errors import Invalid, NotFound
from appliance.engines.outcome import Finish, Outcome

KEPT_RECEIPTS = 1000
_KEY = re.compile(r"none|[0-9a-fA-F]{12,64}")
_STATUS = re.compile(r"[1-5](\d\d|[xX]{2})")
_ORIGIN = re.compile(r"\b[a-z]+://[^/\s']+|(?<!:)//[^/\s']+", re.IGNORECASE)


@dataclass(slots=True)
class Attempt:
    """One attempt at one endpoint.

    Attributes:
        endpoint: Its address; "" = not known yet.
        outcome: How it ended.
        status: The HTTP status of the response; None = there was none.
        ms: How long it took, milliseconds.
        note: The error text of the server, shortened.
        failure_status: The status that the failure stands for; an error event in a stream of status 200 has
            its own.
        backend: Name of the operator's backend that it was made at; "" = a public endpoint.
        retry_after_s: Its Retry-After, seconds; None = none. JSON does not show it.
    """

    endpoint: str
    outcome: Outcome = Outcome.CANCELLED
    status: int | None = None
    ms: float = 0.0
    note: str = ""
    failure_status: int | None = None
    backend: str = ""
    retry_after_s: float | None = None

    @property
    def label(self) -> str:
        """The outcome as receipts and metrics show it, as `ok` or `status_502`."""
        return self.outcome.render(self.failure_status or self.status)

    def as_dict(self) -> dict[str, Any]:
        """Return the attempt as JSON shows it."""
        return {
            "endpoint": self.endpoint,
            "outcome": self.label,
            "status": self.status,
            "ms": self.ms,
            "note": self.note,
        }


@dataclass(slots=True)
class Receipt:
    """What was decided for one request, and how it ended. It holds no prompt, no response and no key.

    Attributes:
        id: The request's id.
        at_s: When it began, seconds since 1970.
        route: The address in the table of routes.
        model: The model by the name that the client sent.
        public_model: The model by the name in the reply.
        served_model: The model that answered, by its name at the backend.
        backend: The backend of the latest attempt.
        endpoint: Its address.
        reason: Why this backend.
        pool: The pool that it is in.
        overflow: Why the request left the pool that it was meant for; "" = it did not.
        streamed: The client wanted a stream.
        attempts: One row for each attempt.
        queue_ms: Time in queues, milliseconds.
        upstream_ms: Until the upstream's first byte, milliseconds.
        total_ms: Until the response's last byte, milliseconds.
        prompt_tokens: As the engine reported; None = it did not.
        completion_tokens: As the engine reported, or counted; None = unknown.
        tokens_from: What `completion_tokens` comes from: `usage` and `timings` (llama-server's) are the
            engine's own counts, `events` the number of a stream's events with content; "" = none of them.
        first_token_ms: From the request to the first content of a stream of the engine; None = none.
        last_token_ms: From the request to the end of that stream.
        finish: How it ended; None = it runs.
        error: `kind: message`; "" = none.
        status: The HTTP status that the client got; 0 = none yet.
        began_s: When the request began, monotonic. JSON does not show it.
        key: The digest of the caller's key, in short (see `access.key_name`); "" = none was sent.
        cached_tokens: Of the prompt, read from the engine's cache, as it reported. JSON does not show it.
        billing: What was charged; None = no account pays, and JSON does not show it.
        stop_reason: Why the appliance ended the response early: `credits_exhausted`; "" = it did not, and
            JSON does not show it.
        header_lines: Headers that the response gets, such as those of rate limits, as lines that end with
            CR LF. JSON does not show them.
    """

    id: str
    at_s: float = 0.0
    route: str = ""
    model: str = ""
    public_model: str = ""
    served_model: str = ""
    backend: str = ""
    endpoint: str = ""
    reason: str = ""
    pool: str = ""
    overflow: str = ""
    streamed: bool = False
    attempts: list[Attempt] = field(default_factory=list)
    queue_ms: float = 0.0
    upstream_ms: float = 0.0
    total_ms: float = 0.0
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    tokens_from: str = ""
    first_token_ms: float | None = None
    last_token_ms: float | None = None
    finish: Finish | None = None
    error: str = ""
    status: int = 0
    began_s: float = 0.0
    key: str = ""
    cached_tokens: int = 0
    billing: dict[str, Any] | None = None
    stop_reason: str = ""
    header_lines: str = ""

    @property
    def finish_label(self) -> str:
        """How the request ended, as JSON and gRPC show it; "" while it runs."""
        return self.finish.value if self.finish is not None else ""

    def note_usage(self, usage: Any, *, source: str = "usage") -> None:
        """Take the token counts that an engine reported; anything but an object is ignored."""
        if isinstance(usage, dict):
            prompt, completion = _count(usage.get("prompt_tokens")), _count(usage.get("completion_tokens"))
            self.note_counts(prompt, completion, source=source)
            details = usage.get("prompt_tokens_details")
            if isinstance(details, dict):
                self.cached_tokens = _count(details.get("cached_tokens")) or 0

    def note_counts(self, prompt: int | None, completion: int | None, *, source: str) -> None:
        """Take numbers of tokens; None = it was not given, and what was noted before stays."""
        self.prompt_tokens = prompt if prompt is not None else self.prompt_tokens
        if completion is not None:
            self.completion_tokens = completion
        if prompt is not None or completion is not None:
            self.tokens_from = source

    def note_first_token(self, now_s: float) -> None:
        """Record that the first content of a stream has arrived; `now_s` is monotonic."""
        self.first_token_ms = (now_s - self.began_s) * 1000

    def note_last_token(self, now_s: float) -> None:
        """Record that a stream has ended; `now_s` is monotonic."""
        self.last_token_ms = (now_s - self.began_s) * 1000

    def render_headers(self) -> tuple[str, str]:
        """Return the values of `x-appliance-receipt`, the short form, and of `Server-Timing` (in ms)."""
        queue_ms = f"{self.queue_ms:.1f}" if self.queue_ms else "0.0"
        upstream_ms = f"{self.upstream_ms:.1f}"
        return (
            f"backend={self.backend}; endpoint={self.endpoint}; model={self.served_model}; "
            f"attempts={len(self.attempts)}; queue_ms={queue_ms}; "
            f"upstream_ms={upstream_ms}; reason={self.reason}",
            f"queue;dur={queue_ms}, upstream;dur={upstream_ms}",
        )

    def as_dict(self) -> dict[str, Any]:
        """Return the receipt as JSON shows it: every field by its name, outcome and finish as strings."""
        row = asdict(self)
        row["attempts"] = [attempt.as_dict() for attempt in self.attempts]
        row["finish"] = self.finish_label
        for name in ("began_s", "cached_tokens", "header_lines"):
            del row[name]
        for name in ("billing", "stop_reason"):
            if not row[name]:
                del row[name]
        return row


def _count(value: Any) -> int | None:
    """Return a number of tokens; None for what is none, as a text or a negative number."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    is_count = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53
    return value if is_count else None


def attempt_rows(attempts: list[Attempt]) -> list[dict[str, Any]]:
    """List attempts as error bodies show them to clients.

    1. at a backend of the operator's  → `backend`, its name: addresses are for operators, in receipts;
                                         of the target of a redirect, too
    2. at a public endpoint            → `url`

    Returns:
        One object per attempt: `backend` or `url`, `outcome`, and `status` and `body`, or `error` where no
        status came.

    Source:
        docs/compatibility.md, error bodies of the hosted API.
    """
    rows: list[dict[str, Any]] = []
    for attempt in attempts:
        note = attempt.note
        row: dict[str, Any]
        if attempt.backend:  # 1
            row = {"backend": attempt.backend, "outcome": attempt.label}
            if attempt.status is not None and attempt.status // 100 == 3:
                note = _ORIGIN.sub("", note)
            if address := urlsplit(attempt.endpoint).netloc:
                note = note.replace(address, attempt.backend)
        else:  # 2
            row = {"url": attempt.endpoint, "outcome": attempt.label}
        if attempt.status:
            row |= {"status": attempt.status, "body": note}
        else:
            row["error"] = note
        rows.append(row)
    return rows


@dataclass(frozen=True, slots=True)
class ReceiptFilter:
    """What receipts have to fulfil; what is not given fits all.

    Attributes:
        model: As the client, the reply or the backend names it.
        key: Of the caller, as receipts show it; "none" = no key was sent.
        status: An HTTP status ("404") or its class ("4xx").
        finish: How it ended.
        since_s: It began then or later, seconds since 1970.
        until_s: It began before then.
    """

    model: str = ""
    key: str = ""
    status: str = ""
    finish: str = ""
    since_s: float | None = None
    until_s: float | None = None

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            Invalid: One cannot be that of a receipt. A key is not repeated: it may be a real one.
        """
        if self.key and not _KEY.fullmatch(self.key):
            raise Invalid(
                "`key` must be `none`, or 12 to 64 hexadecimal digits of a key's SHA-256, as in the field "
                "`key` of a receipt; never the key itself.",
                param="key",
                code="invalid_value",
            )
        if self.status and not _STATUS.fullmatch(self.status):
            raise Invalid(
                f"`status` must be an HTTP status such as 404, or its class such as 4xx, not "
                f"{self.status[:20]!r}.",
                param="status",
                code="invalid_value",
            )
        words = [finish.value for finish in Finish]
        if self.finish and self.finish not in words:
            raise Invalid(
                f"`finish` must be one of {', '.join(words)}, not {self.finish[:20]!r}.",
                param="finish",
                code="invalid_value",
            )

    def fits(self, receipt: Receipt) -> bool:
        """Whether a receipt fulfils it."""
        status = str(receipt.status)
        return (
            (not self.model or self.model in (receipt.model, receipt.public_model, receipt.served_model))
            and (not self.key or receipt.key == ("" if self.key == "none" else self.key.lower()[:12]))
            and (not self.status or self.status.lower() in (status, f"{status[0]}xx"))
            and (not self.finish or receipt.finish_label == self.finish)
            and (self.since_s is None or receipt.at_s >= self.since_s)
            and (self.until_s is None or receipt.at_s < self.until_s)
        )


class Receipts:
    """The latest receipts, by id, in the order in which their requests ended."""

    def __init__(self, capacity: int = KEPT_RECEIPTS) -> None:
        self._capacity = capacity
        self._by_id: dict[str, Receipt] = {}
        self._in_order: deque[Receipt] = deque()  # an older one of the same id stays in it until its turn
        self._added = 0
        self._changed = asyncio.Event()  # replaced with each receipt that a follower waits for
        self._followers = 0
        self._is_closed = False

    def add(self, receipt: Receipt) -> None:
        """Add a receipt; the oldest one is dropped if there are too many."""
        self._by_id[receipt.id] = receipt
        self._in_order.append(receipt)
        self._added += 1
        if self._followers:
            self._wake()
        if len(self._in_order) > self._capacity:
            oldest = self._in_order.popleft()
            if self._by_id[oldest.id] is oldest:
                del self._by_id[oldest.id]

    def get(self, receipt_id: str) -> Receipt | None:
        """Return a receipt; None = there is none, or it was dropped."""
        return self._by_id.get(receipt_id)

    def latest(self, count: int) -> list[Receipt]:
        """Return up to `count` receipts, newest first."""
        by_id = self._by_id
        return list(islice((one for one in reversed(self._in_order) if by_id[one.id] is one), count))

    def find(self, wanted: ReceiptFilter, count: int, *, before: str = "") -> tuple[list[Receipt], str]:
        """Find receipts, newest first.

        Args:
            wanted: What they have to fulfil.
            count: How many at most.
            before: The id of a receipt; only older ones are returned. "" = from the newest on.

        Returns:
            (the receipts, the id to ask for the next ones with; "" = there are no more)

        Raises:
            NotFound: There is no receipt `before`.
        """
        rows = iter(self.latest(self._capacity))
        if before:
            if before not in self._by_id:
                raise no_receipt(before)
            for receipt in rows:
                if receipt.id == before:
                    break
        found = list(islice(filter(wanted.fits, rows), count + 1))
        is_more = len(found) > count
        return found[:count], found[count - 1].id if is_more else ""

    async def follow(self, wanted: ReceiptFilter, *, latest: int = 0) -> AsyncGenerator[Receipt, None]:
        """Yield receipts as they are added, until `close`; a reader that is too slow misses the oldest.

        Args:
            wanted: What they have to fulfil.
            latest: How many of those that are there already come first.
        """
        for receipt in reversed(self.find(wanted, latest)[0]):
            yield receipt
        seen = self._added
        self._followers += 1
        try:
            while not self._is_closed:
                changed, new = self._changed, self._added - seen
                seen = self._added
                for receipt in list(self._in_order)[-new:] if new else ():
                    if wanted.fits(receipt):
                        yield receipt
                if changed is self._changed:
                    await changed.wait()
        finally:
            self._followers -= 1

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def close(self) -> None:
        """End everything that follows."""
        self._is_closed = True
        self._wake()

    def __len__(self) -> int:
        return len(self._by_id)


def no_receipt(receipt_id: str) -> NotFound:
    """Return the error for an id that no stored receipt has."""
    return NotFound(f"There is no receipt {receipt_id[:200]!r}; only the last {KEPT_RECEIPTS} are stored.")
