"""One line per request: its form, its secrets, and when it is written."""

import io
import json

from appliance.base.clock import FakeClock
from appliance.base.logs import SECRETS
from appliance.engines.outcome import Finish
from appliance.engines.receipts import Receipt
from appliance.front.pipeline.access_log import MAX_BUFFERED_LINES, AccessLog


def receipt(**fields: object) -> Receipt:
    made = Receipt("req_1", status=200, total_ms=12.345, finish=Finish.DONE)
    for name, value in fields.items():
        setattr(made, name, value)
    return made


def written(log: AccessLog, made: Receipt, path: str = "/v1/chat/completions") -> None:
    log.write(made, method="POST", path=path, peer="10.0.0.9", sent_bytes=7)


def test_a_json_line_has_the_fields_of_the_receipt() -> None:
    out = io.StringIO()
    log = AccessLog(clock=FakeClock(), form="json", stream=out)
    written(log, receipt(model="m", backend="b1", prompt_tokens=3))
    log.flush()
    line = json.loads(out.getvalue())
    assert line.pop("ts") == "2027-01-15T08:00:00.000Z"
    assert line == {
        "event": "request",
        "level": "info",
        "id": "req_1",
        "peer": "10.0.0.9",
        "method": "POST",
        "path": "/v1/chat/completions",
        "status": 200,
        "finish": "done",
        "ms": 12.35,
        "bytes": 7,
        "stream": False,
        "model": "m",
        "served_model": "",
        "backend": "b1",
        "endpoint": "",
        "attempts": 0,
        "upstream_ms": 0.0,
        "prompt_tokens": 3,
        "completion_tokens": None,
        "tokens_from": "",
        "error": "",
    }


def test_a_line_for_people_is_short() -> None:
    out = io.StringIO()
    log = AccessLog(clock=FakeClock(), form="console", stream=out)
    written(log, receipt(error="invalid: no"))
    log.flush()
    assert out.getvalue() == (
        "2027-01-15T08:00:00.000Z 10.0.0.9 POST /v1/chat/completions 200 12.3ms 7B model=- backend=- invalid: no\n"
    )


def test_a_line_for_people_says_how_a_response_ended() -> None:
    out = io.StringIO()
    log = AccessLog(clock=FakeClock(), form="console", stream=out)
    written(log, receipt(finish=Finish.CLIENT_LEFT, status=499))
    written(log, receipt(finish=Finish.CUT_OFF))
    log.flush()
    left, cut = out.getvalue().splitlines()
    assert " 499 client_left 12.3ms 7B " in left
    assert " 200 cut_off 12.3ms 7B " in cut


def test_a_caller_cannot_write_lines_or_colours_to_a_terminal() -> None:
    out = io.StringIO()
    log = AccessLog(clock=FakeClock(), form="console", stream=out)
    written(log, receipt(model="\x1b[31mm\x1b]0;title\x07\n2027 forged\x9b", error="invalid: \r\x1b[2J"))
    log.flush()
    assert out.getvalue().count("\n") == 1
    assert r"model=m\n2027 forged\x9b backend=- invalid: " in out.getvalue()
    assert "\x1b" not in out.getvalue()


def test_auto_is_json_where_there_is_no_terminal() -> None:
    out = io.StringIO()
    log = AccessLog(clock=FakeClock(), form="auto", stream=out)
    written(log, receipt())
    log.flush()
    assert out.getvalue().startswith("{")


def test_secrets_are_hidden_in_path_model_and_error() -> None:
    SECRETS.learn(["hidden-secret-1"])
    out = io.StringIO()
    log = AccessLog(clock=FakeClock(), form="json", stream=out)
    written(log, receipt(model="hidden-secret-1", error="x hidden-secret-1"), path="/hidden-secret-1")
    log.flush()
    assert "hidden-secret-1" not in out.getvalue()


def test_lines_are_buffered_and_copied_at_once() -> None:
    out, seen = io.StringIO(), []
    clock = FakeClock()
    log = AccessLog(
        clock=clock, form="json", stream=out, on_line=lambda at_s, line: seen.append((at_s, line))
    )
    written(log, receipt())
    clock.advance(1.5)
    written(log, receipt())
    assert out.getvalue() == ""
    assert [at_s for at_s, _ in seen] == [1_800_000_000.0, 1_800_000_001.5]
    assert '"ts":"2027-01-15T08:00:01.500Z"' in seen[1][1]
    for _ in range(MAX_BUFFERED_LINES - 2):
        written(log, receipt())
    assert out.getvalue().count("\n") == MAX_BUFFERED_LINES
