"""One entry for each request, and the comparison of all accounts of it: client, log, metrics, receipts, servers."""

import json
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from tests.endurance import figures
from tests.endurance.figures import Samples
from tests.endurance.kinds import Kind
from tests.endurance.standin import MARK, Journal

# How an attempt may end whose request the server may not have read; all others it has.
UNSURE = {"cancelled", "connect", "first_byte", "head", "lost", "total", "closed", "pool", "dns", "tls"}
NO_ERRORS = {"ok", "refused", "passed", "cancelled", "client_left"}


@dataclass
class Entry:
    """One request as its client saw it.

    Attributes:
        id: Its x-request-id; "" until the response has told it.
        lines: How many lines of the access log it must have: one, at most one, none.
        outcome: How it ended for the client, exactly one word or sentence.
        problems: What was wrong.
    """

    number: int
    mark: str
    kind: Kind
    manner: str
    model: str
    id: str = ""
    status: int = 0
    body_bytes: int = 0
    lines: str = "one"
    outcome: str = ""
    problems: list[str] = field(default_factory=list)

    @property
    def has_left(self) -> bool:
        return self.outcome.startswith(("left", "closed its", "never read", "unread"))

    @property
    def has_receipt(self) -> bool:
        """Whether a receipt of it may be kept: of heads that cannot be read there is none."""
        return self.kind.method == "POST" and self.manner not in {
            "bad_head",
            "cut_head",
            "stalled_head",
            "stalled_body",
        }

    def fail(self, problem: str) -> None:
        self.problems.append(problem)
        self.outcome = self.outcome or "wrong"

    def note_closed(self, error: Exception) -> None:
        """The appliance closed while we sent: allowed only where we left, or the head cannot be read."""
        self.outcome = self.outcome or "closed while it was sent"
        if not self.has_left and self.manner != "bad_head":
            self.fail(f"the connection failed: {error!r}")

    def note_marks(self, body: bytes) -> None:
        """A response must hold no mark of another request."""
        foreign = set(MARK.findall(body.decode("utf-8", "replace"))) - {self.mark}
        if foreign:
            self.fail(f"the answer holds the content of other requests: {sorted(foreign)[:3]}")

    def __str__(self) -> str:
        return f"{self.mark} {self.id or '-'} {self.kind.name} {self.model} {self.manner}: {self.outcome}"


class Ledger:
    """All requests of a run."""

    def __init__(self, journal: Journal) -> None:
        self.journal = journal
        self.entries: list[Entry] = []
        self.by_number: dict[int, Entry] = {}
        self.unseen: dict[
            int, int
        ] = {}  # ended, receipt not read yet: its number → how often it was looked for
        self.receipts: dict[str, dict[str, Any]] = {}
        self.other_ids: set[str] = set()  # of the run's own requests for figures

    def begin(self, number: int, mark: str, kind: Kind, manner: str, model: str, given_id: str) -> Entry:
        entry = Entry(number, mark, kind, manner, model, given_id)
        self.entries.append(entry)
        self.by_number[number] = entry
        return entry

    def end(self, entry: Entry) -> None:
        if entry.id and entry.has_receipt:
            self.unseen[entry.number] = 0

    # ---- the comparison

    def compare(self, log: list[dict[str, Any]], samples: Samples) -> "Comparison":
        """Compare the client's account with all others.

        Args:
            log: The lines of the access log.
            samples: The metrics page after the last request.
        """
        found = Comparison()
        lines = Counter(line["id"] for line in log)
        by_id = {line["id"]: line for line in log}
        known = {entry.id for entry in self.entries if entry.id} | self.other_ids
        found.problems += [f"{entry}: {problem}" for entry in self.entries for problem in entry.problems]
        found.problems += [f"{entry}: no outcome" for entry in self.entries if not entry.outcome]
        found.problems += [f"a line of no request: {by_id[one]}" for one in lines if one not in known]
        ids = Counter(entry.id for entry in self.entries if entry.id)
        found.problems += [f"one id for {count} requests: {one}" for one, count in ids.items() if count > 1]
        for entry in self.entries:
            self._compare_line(found, entry, lines[entry.id] if entry.id else 0, by_id.get(entry.id))
        self._compare_metrics(found, log, samples)
        self._compare_attempts(found, by_id, samples)
        return found

    def _compare_line(
        self, found: "Comparison", entry: Entry, count: int, line: dict[str, Any] | None
    ) -> None:
        """Compare one request with its line of the log."""
        allowed = {"one": {1}, "at most one": {0, 1}, "none": {0}}[entry.lines]
        if count not in allowed:
            found.problems.append(f"{entry}: {count} lines in the log, right: {entry.lines}")
        if entry.lines != "one":
            found.apart[f"{entry.outcome}, {count} line"] += 1
        if line is None:
            return
        found.finishes[line["finish"]] += 1
        if not line["status"]:
            found.problems.append(f"{entry}: status 0 in the log: {line}")
        if entry.has_left or entry.lines != "one":
            return
        if line["status"] != entry.status:
            found.problems.append(f"{entry}: the log says status {line['status']}, the client {entry.status}")
        right = {
            "complete": {"done"},
            "error event": {"cut_off", "error"},
            "passed on as it was": {"done", "cut_off"},
        }
        expected = right.get(
            entry.outcome, {"cut_off"} if entry.outcome.startswith("cut off") else {"done", "error"}
        )
        if line["finish"] not in expected:
            found.problems.append(f"{entry}: the log says finish {line['finish']}")
        if entry.outcome == "complete" and not entry.kind.is_stream and line["bytes"] != entry.body_bytes:
            found.problems.append(f"{entry}: {entry.body_bytes} bytes came, the log says {line['bytes']}")

    def _compare_metrics(self, found: "Comparison", log: list[dict[str, Any]], samples: Samples) -> None:
        """Requests by status: what the metrics count beyond the log are heads that cannot be read."""
        counted = figures.by_label(samples, "appliance_requests_total", "status")
        logged = Counter(str(line["status"]) for line in log)
        by_id = {line["id"] for line in log}
        unlogged = Counter(
            str(entry.status)
            for entry in self.entries
            if entry.manner == "bad_head" and entry.id not in by_id
        )
        found.unlogged = sum(unlogged.values())
        if counted != logged + unlogged:
            found.problems.append(
                f"appliance_requests_total by status {dict(counted)}; in the log {dict(logged)}, and heads that "
                f"cannot be read {dict(unlogged)}"
            )
        found.logged, found.counted = len(log), sum(counted.values())
        timed = int(figures.total(samples, "appliance_request_duration_seconds_count"))
        if timed != found.counted:
            found.problems.append(f"{found.counted} requests are counted, {timed} are timed")

    def _compare_attempts(
        self, found: "Comparison", by_id: dict[str, dict[str, Any]], samples: Samples
    ) -> None:
        """Attempts in log, receipts and metrics, and requests that the servers saw."""
        outcomes: Counter[str] = Counter()
        by_backend: Counter[str] = Counter()
        for entry in self.entries:
            line = by_id.get(entry.id) if entry.id else None
            receipt = self.receipts.get(entry.id) if entry.id else None
            asked = len(self.journal.asked.get(entry.mark, ()))
            if line is not None and entry.has_receipt and receipt is None:
                found.missing_receipts += 1
            attempts = receipt["attempts"] if receipt is not None else []
            if line is not None and receipt is not None:
                self._compare_receipt(found, entry, line, receipt)
            labels = [attempt["outcome"] for attempt in attempts]
            outcomes.update(labels)
            by_backend.update(attempt["endpoint"] for attempt in attempts)
            found.errors_by_endpoint.update(
                attempt["endpoint"] for attempt in attempts if attempt["outcome"] not in NO_ERRORS
            )
            if receipt is not None:
                self._compare_asked(found, entry, labels)
            elif asked and (line is not None or entry.lines != "at most one"):
                found.without_receipt += asked
                if line is None:
                    found.problems.append(f"{entry}: a server was asked, and there is no line")
            elif asked:
                found.problems.append(f"{entry}: a server was asked, though the request has no line")
        found.outcomes, found.by_endpoint = outcomes, by_backend
        found.asked = self.journal.total
        hosted = int(figures.total(samples, "appliance_upstream_attempts_total"))
        found.hosted_attempts = hosted

    def _compare_asked(self, found: "Comparison", entry: Entry, labels: list[str]) -> None:
        """Compare the attempts of one request with what the servers saw.

        No server gets a request twice, but for one case: a kept connection that was closed without a byte of an answer;
        then it is repeated once on a fresh connection, within the same attempt.
        """
        asked = Counter(name for name, _ in self.journal.asked.get(entry.mark, ()))
        unsure = UNSURE | {"client_left"} if entry.kind.may_be_cut else UNSURE
        sure = sum(1 for label in labels if label not in unsure)
        if not sure <= len(asked) <= len(labels) or any(count > 2 for count in asked.values()):
            found.problems.append(
                f"{entry}: the servers saw {self.journal.asked.get(entry.mark)}, the attempts are {labels}"
            )
        found.unseen += len(labels) - len(asked)
        found.repeated += asked.total() - len(asked)

    def _compare_receipt(
        self, found: "Comparison", entry: Entry, line: dict[str, Any], receipt: dict[str, Any]
    ) -> None:
        for name in ("status", "finish", "backend", "model", "error"):
            if receipt[name] != line[name]:
                found.problems.append(
                    f"{entry}: {name} is {receipt[name]!r} in the receipt, {line[name]!r} in the log"
                )
        if len(receipt["attempts"]) != line["attempts"]:
            found.problems.append(
                f"{entry}: {len(receipt['attempts'])} attempts in the receipt, {line['attempts']} in the log"
            )


@dataclass
class Comparison:
    """What the comparison found.

    Attributes:
        problems: One sentence each.
        apart: Requests of which not exactly one line is expected, by outcome and lines.
        finishes: How requests ended by the log.
        unlogged: Heads that cannot be read: counted, without a line of their own.
        logged: Lines of the access log.
        counted: Requests in the metrics.
        asked: Requests that the servers saw.
        unseen: Attempts that no server saw.
        repeated: Requests that were repeated on a fresh connection, within one attempt.
        without_receipt: Requests at servers whose receipt was dropped before it was read.
        outcomes: Attempts by their outcome.
        by_endpoint: Attempts by address.
        errors_by_endpoint: Those of them that count as errors of the server.
        hosted_attempts: Attempts at the hosted API by the metrics.
        unused_slots: Backends chosen for requests whose client left at that moment: no attempt was made.
        missing_receipts: Requests whose receipt was dropped before it was read.
    """

    problems: list[str] = field(default_factory=list)
    apart: Counter[str] = field(default_factory=Counter)
    finishes: Counter[str] = field(default_factory=Counter)
    unlogged: int = 0
    logged: int = 0
    counted: int = 0
    asked: int = 0
    unseen: int = 0
    repeated: int = 0
    without_receipt: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    by_endpoint: Counter[str] = field(default_factory=Counter)
    errors_by_endpoint: Counter[str] = field(default_factory=Counter)
    hosted_attempts: int = 0
    unused_slots: int = 0
    missing_receipts: int = 0


def read_log(text: str) -> tuple[list[dict[str, Any]], list[str]]:
    """Split a log into the lines of requests and the others that matter: errors, tracebacks, what is no JSON."""
    requests, faults = [], []
    for line in text.splitlines():
        try:
            value = json.loads(line)
        except ValueError:
            if line.strip():
                faults.append(line)
            continue
        if value.get("event") == "request":
            requests.append(value)
        elif (
            value.get("level") in {"error", "critical"}
            or value.get("event") == "unhandled"
            or "Traceback" in line
        ):
            faults.append(line)
    return requests, faults
