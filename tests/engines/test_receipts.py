"""What a receipt shows, and how many are kept."""

from typing import Any

import pytest

from appliance.engines.outcome import Finish, Outcome
from appliance.engines.receipts import Attempt, Receipt, Receipts, attempt_rows

FAILED = Attempt("http://a", Outcome.STATUS, 502, 12.5, "bad gateway")
LOST = Attempt("http://b", Outcome.CONNECT, None, 1.0, "refused")
OK = Attempt("http://c", Outcome.OK, 200, 3.25)


def test_a_receipt_as_json() -> None:
    receipt = Receipt(
        "r1", 5.0, "/v1/chat/completions", attempts=[FAILED, OK], finish=Finish.CUT_OFF, status=200
    )
    shown = receipt.as_dict()
    assert list(shown) == [
        *(
            "id",
            "at_s",
            "route",
            "model",
            "public_model",
            "served_model",
            "backend",
            "endpoint",
            "reason",
            "pool",
        ),
        *("overflow", "streamed", "attempts", "queue_ms", "upstream_ms", "total_ms", "prompt_tokens"),
        *("completion_tokens", "tokens_from", "first_token_ms", "last_token_ms", "finish", "error", "status"),
        "key",
    ]
    assert (shown["finish"], shown["status"]) == ("cut_off", 200)
    assert shown["attempts"] == [
        {"endpoint": "http://a", "outcome": "status_502", "status": 502, "ms": 12.5, "note": "bad gateway"},
        {"endpoint": "http://c", "outcome": "ok", "status": 200, "ms": 3.25, "note": ""},
    ]


def test_what_has_not_ended_has_no_finish() -> None:
    shown = Receipt("r1", attempts=[Attempt("http://a")]).as_dict()
    assert (shown["finish"], shown["attempts"][0]["outcome"]) == ("", "cancelled")


def test_attempts_in_error_bodies() -> None:
    assert attempt_rows([FAILED, LOST]) == [
        {"url": "http://a", "outcome": "status_502", "status": 502, "body": "bad gateway"},
        {"url": "http://b", "outcome": "connect", "error": "refused"},
    ]


def test_attempts_at_own_backends_show_names_and_no_addresses() -> None:
    attempts = [
        Attempt("http://10.0.0.5:80/v1", Outcome.STATUS, 502, 1.0, "bad gateway 10.0.0.5:80", backend="e0"),
        Attempt(
            "http://10.0.0.6:80", Outcome.CONNECT, None, 1.0, "10.0.0.6:80 cannot be reached", backend="e1"
        ),
        Attempt("", Outcome.CANCELLED, backend="e2"),
        Attempt(
            "http://10.0.0.7:80",
            Outcome.STATUS,
            307,
            1.0,
            "redirects to 'http://10.0.0.8/v2', not followed",
            backend="e3",
        ),
    ]
    assert attempt_rows(attempts) == [
        {"backend": "e0", "outcome": "status_502", "status": 502, "body": "bad gateway e0"},
        {"backend": "e1", "outcome": "connect", "error": "e1 cannot be reached"},
        {"backend": "e2", "outcome": "cancelled", "error": ""},
        {
            "backend": "e3",
            "outcome": "status_307",
            "status": 307,
            "body": "redirects to '/v2', not followed",
        },
    ]


def test_the_short_forms_for_headers() -> None:
    receipt = Receipt(
        *("r1", 0.0, "", "", "", "m", "e0", "http://e0", "model"),
        attempts=[OK],
        queue_ms=1.26,
        upstream_ms=20,
    )
    assert receipt.render_headers() == (
        "backend=e0; endpoint=http://e0; model=m; attempts=1; queue_ms=1.3; upstream_ms=20.0; reason=model",
        "queue;dur=1.3, upstream;dur=20.0",
    )


@pytest.mark.parametrize(
    ("usage", "tokens"),
    [
        ({"prompt_tokens": 3, "completion_tokens": 4}, (3, 4)),
        ({"prompt_tokens": 3}, (3, None)),
        (None, (None, None)),
        ([1], (None, None)),
    ],
)
def test_reported_usage_is_noted(usage: Any, tokens: tuple[int | None, int | None]) -> None:
    receipt = Receipt("r1")
    receipt.note_usage(usage)
    assert (receipt.prompt_tokens, receipt.completion_tokens) == tokens


def test_the_latest_receipts_are_kept() -> None:
    receipts = Receipts(2)
    for number in range(3):
        receipts.add(Receipt(f"r{number}"))
    assert len(receipts) == 2
    assert [receipt.id for receipt in receipts.latest(10)] == ["r2", "r1"]
    assert [receipt.id for receipt in receipts.latest(1)] == ["r2"]
    assert receipts.get("r0") is None
    assert receipts.get("r1") is not None
