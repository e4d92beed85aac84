"""A small endurance run, and that its comparison sees what it is for."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.endurance import figures
from tests.endurance.clients import Answer, check
from tests.endurance.kinds import BY_NAME, CHAT
from tests.endurance.ledger import Entry, Ledger, read_log
from tests.endurance.run import Endurance
from tests.endurance.standin import Journal, text_of

MARK = "m000001-0123abcda"
OTHER = "m000002-0123abcda"


async def test_every_request_of_a_run_with_faults_is_accounted_for(tmp_path: Path) -> None:
    run = Endurance(tmp_path, requests=600, seed=1, concurrency=48)
    report = await run.run()
    assert not report.problems, report.text()
    # It was no quiet run: there were faults, leavers, kills and reloads.
    assert len(report.comparison.outcomes) > 10
    assert report.comparison.finishes["client_left"]
    assert report.kills
    assert report.reloads["by appliance ctl"] == 1


# ---- what the comparison sees, without a run


def line_of(**more: Any) -> dict[str, Any]:
    return {
        "event": "request", "id": "e-1", "status": 200, "finish": "done", "bytes": 10, "attempts": 1, "backend": "a",
        "model": "own", "error": "", "path": CHAT, **more,
    }  # fmt: skip


def scene() -> tuple[Ledger, Entry, list[dict[str, Any]], figures.Samples]:
    """One request with which all is well."""
    ledger = Ledger(Journal())
    entry = ledger.begin(1, MARK, BY_NAME["chat"], "plain", "own", "e-1")
    entry.status, entry.body_bytes, entry.outcome = 200, 10, "complete"
    ledger.journal.asked[MARK] = [("a", "good")]
    line = line_of()
    attempt = {"outcome": "ok", "endpoint": "http://a"}
    names = ("status", "finish", "backend", "model", "error")
    ledger.receipts["e-1"] = {**{name: line[name] for name in names}, "attempts": [attempt]}
    samples = figures.parse(
        'appliance_requests_total{route="/v1/chat/completions",status="200"} 1.0\n'
        'appliance_request_duration_seconds_count{route="/v1/chat/completions"} 1.0\n'
    )
    return ledger, entry, [line], samples


def test_a_request_with_which_all_is_well_is_no_problem() -> None:
    ledger, _, log, samples = scene()
    found = ledger.compare(log, samples)
    assert (found.problems, found.logged, found.counted, found.asked) == ([], 1, 1, 1)


Change = Callable[[Ledger, Entry, list[dict[str, Any]]], Any]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda ledger, entry, log: log.clear(), "0 lines in the log"),
        (lambda ledger, entry, log: log.append(log[0]), "2 lines in the log"),
        (lambda ledger, entry, log: log.append(line_of(id="e-2")), "a line of no request"),
        (lambda ledger, entry, log: log[0].update(status=502), "the log says status 502, the client 200"),
        (lambda ledger, entry, log: log[0].update(status=0), "status 0 in the log"),
        (lambda ledger, entry, log: log[0].update(finish="cut_off"), "the log says finish cut_off"),
        (lambda ledger, entry, log: log[0].update(bytes=9), "10 bytes came, the log says 9"),
        (lambda ledger, entry, log: log[0].update(attempts=2), "1 attempts in the receipt, 2 in the log"),
        (lambda ledger, entry, log: ledger.journal.asked.clear(), "the servers saw None"),
        (lambda ledger, entry, log: ledger.journal.asked[MARK].append(("b", "good")), "the servers saw"),
        (lambda ledger, entry, log: log.append(line_of(status=499)), "appliance_requests_total by status"),
        (
            lambda ledger, entry, log: ledger.receipts["e-1"].update(backend="b"),
            "backend is 'b' in the receipt",
        ),
        (lambda ledger, entry, log: setattr(entry, "outcome", ""), "no outcome"),
    ],
)
def test_the_comparison_sees(change: Change, problem: str) -> None:
    ledger, entry, log, samples = scene()
    change(ledger, entry, log)
    assert problem in "\n".join(ledger.compare(log, samples).problems)


def answer_with(content: str) -> Answer:
    body = b'{"choices": [{"message": {"content": "%s"}}]}' % content.replace("\n", "\\n").encode()
    return Answer(200, {"x-request-id": "e-1"}, body, is_whole=True)


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (answer_with(text_of(MARK).replace("\\", "\\\\").replace('"', '\\"')), ""),
        (answer_with(f"{MARK} and {OTHER}"), "the content of other requests"),
        (answer_with(MARK), "the text is"),
        (Answer(), "closed without an answer"),
        (Answer(200, {"x-request-id": "e-1"}, b"{", is_whole=False), "ends within its framing"),
        (Answer(200, {"x-request-id": "e-2"}, b"{}", is_whole=True), "x-request-id is 'e-2'"),
        (Answer(401, {"x-request-id": "e-1"}, b'{"error": {"message": "x"}}', is_whole=True), "status 401"),
        (
            Answer(502, {"x-request-id": "e-1"}, b'{"error": "x"}', is_whole=True),
            "without the error of its dialect",
        ),
        (
            Answer(
                503,
                {"x-request-id": "e-1"},
                b'{"error": {"message": "No backend available: a is ready, b is full."}}',
                is_whole=True,
            ),
            "though a server is ready",
        ),
        (
            Answer(
                503,
                {"x-request-id": "e-1"},
                b'{"error": {"message": "No backend available: a is down."}}',
                is_whole=True,
            ),
            "",
        ),
    ],
)
def test_the_client_sees(answer: Answer, problem: str) -> None:
    entry = Entry(1, MARK, BY_NAME["chat"], "plain", "own", "e-1")
    check(entry, answer)
    assert (problem in "\n".join(entry.problems)) if problem else not entry.problems


def test_tracebacks_and_errors_of_the_log_are_found() -> None:
    text = '{"event": "request", "id": "x"}\n{"event": "serving", "level": "info"}\n'
    assert read_log(text) == ([{"event": "request", "id": "x"}], [])
    for fault in ("Traceback (most recent call last):", '{"event": "unhandled", "level": "error"}'):
        assert read_log(text + fault)[1] == [fault]
