"""Errors as HTTP, in each dialect."""

import json
from typing import Any

import pytest

from appliance.base.errors import (
    ApplianceError,
    Conflict,
    Exhausted,
    Forbidden,
    Internal,
    Invalid,
    Kind,
    NoSuchModel,
    NotFound,
    TimedOut,
    TooLarge,
    Unauthenticated,
    Unavailable,
    Unsupported,
    UpstreamFailed,
)
from appliance.engines.types import EngineReply
from appliance.front.pipeline.errors import (
    HTTP_STATUS,
    OPENAI_TYPE,
    error_body,
    error_event,
    error_headers,
    status_of,
)
from appliance.front.pipeline.replies import parse_error_reply, parse_reply


def test_every_kind_has_a_status_and_a_type() -> None:
    assert set(HTTP_STATUS) == set(OPENAI_TYPE) == set(Kind)


@pytest.mark.parametrize(
    ("details", "status"), [({}, 400), ({"status": 422}, 422), ({"status": 200}, 400), ({"status": "x"}, 400)]
)
def test_an_upstreams_own_status_is_kept(details: dict[str, Any], status: int) -> None:
    assert status_of(Invalid("no", details=details)) == status


@pytest.mark.parametrize(
    ("dialect", "body"),
    [
        ("openai", {"error": {"message": "no", "type": "invalid_request_error", "param": "n", "code": "c"}}),
        ("ollama", {"error": "no"}),
        (
            "anthropic",
            {
                "type": "error",
                "error": {"type": "invalid_request_error", "message": "no"},
                "request_id": None,
            },
        ),
        ("detail", {"detail": "no"}),
        ("market", {"error": "no", "code": "c", "request_id": "", "details": {"field": "n"}}),
    ],
)
def test_a_body_has_its_dialects_shape(dialect: str, body: Any) -> None:
    assert json.loads(error_body(Invalid("no", param="n", code="c"), dialect)) == body


def test_failed_attempts_and_own_fields_are_added() -> None:
    details = {"attempts": [{"endpoint": "e"}], "error_type": "special", "error_fields": {"needed": 1}}
    error = UpstreamFailed("no", details=details)
    assert json.loads(error_body(error, "openai"))["error"] == {
        "message": "no",
        "type": "special",
        "param": None,
        "code": error.code,
        "needed": 1,
        "attempts": [{"endpoint": "e"}],
    }
    assert json.loads(error_body(error, "ollama")) == {"error": "no", "attempts": [{"endpoint": "e"}]}
    assert json.loads(error_body(error, "detail")) == {"detail": "no"}
    assert json.loads(error_body(error, "market", "req_1")) == {
        "error": "no",
        "code": error.code,
        "request_id": "req_1",
        "needed": 1,
        "details": {"attempts": [{"endpoint": "e"}]},
    }
    assert json.loads(error_body(error, "anthropic"))["error"]["attempts"] == [{"endpoint": "e"}]


def test_errors_of_accounts_have_a_code_and_the_short_text() -> None:
    assert json.loads(error_body(NotFound("none"), "market", "r")) == {
        "error": "none",
        "code": "not_found",
        "request_id": "r",
    }
    assert json.loads(error_body(Invalid("no"), "market", "r"))["code"] == "invalid"
    limited = Exhausted("At most 3 a minute.", details={"short": "Rate limit exceeded"})
    shown = json.loads(error_body(limited, "market", "r"))
    assert (shown["error"], shown["details"]) == ("Rate limit exceeded", {"text": "At most 3 a minute."})


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (Invalid("no"), "invalid_request_error"),
        (Unauthenticated("no"), "authentication_error"),
        (Forbidden("no"), "permission_error"),
        (NotFound("no"), "not_found_error"),
        (NoSuchModel("no"), "not_found_error"),
        (Conflict("no"), "invalid_request_error"),
        (TooLarge("no"), "request_too_large"),
        (Exhausted("no"), "rate_limit_error"),
        (Unsupported("no"), "api_error"),
        (TimedOut("no"), "timeout_error"),
        (Unavailable("no"), "overloaded_error"),
        (UpstreamFailed("no"), "api_error"),
        (Internal("no"), "api_error"),
        (Invalid("no", details={"status": 429}), "rate_limit_error"),
        (UpstreamFailed("no", details={"status": 529}), "overloaded_error"),
    ],
)
def test_anthropics_type_follows_the_status(error: ApplianceError, kind: str) -> None:
    assert json.loads(error_body(error, "anthropic", "req_1")) == {
        "type": "error",
        "error": {"type": kind, "message": "no"},
        "request_id": "req_1",
    }
    event = error_event(error, "anthropic", "req_1")
    assert event == b"event: error\ndata: " + error_body(error, "anthropic", "req_1") + b"\n\n"


@pytest.mark.parametrize(
    ("details", "message"),
    [
        ({"prompt_tokens": 9, "context_tokens": 5}, "prompt is too long: 9 tokens > 5 maximum. no"),
        ({"prompt_tokens": 0, "context_tokens": 5}, "prompt is too long. no"),
        ({}, "prompt is too long. no"),
    ],
)
def test_a_prompt_too_long_begins_with_anthropics_words(details: dict[str, Any], message: str) -> None:
    error = Invalid("no", code="context_length_exceeded", details=details)
    assert json.loads(error_body(error, "anthropic"))["error"]["message"] == message


def test_a_failure_in_a_stream_is_the_dialects_last_piece() -> None:
    error = Invalid("no")
    assert error_event(error, "ollama") == b'{"error":"no"}\n'
    event = error_event(error, "openai")
    assert event.startswith(b'data: {"error":{"message":"no"')
    assert event.endswith(b"}\n\n")
    assert b"[DONE]" not in event


@pytest.mark.parametrize(
    ("error", "headers"),
    [
        (Invalid("no"), []),
        (Exhausted("no", retry_after_s=0.2), [("Retry-After", "1")]),
        (Exhausted("no", retry_after_s=2.1), [("Retry-After", "3")]),
        (Unauthenticated("no"), [("WWW-Authenticate", "Bearer")]),
    ],
)
def test_headers_say_when_to_retry_and_how_to_authenticate(
    error: Any, headers: list[tuple[str, str]]
) -> None:
    assert error_headers(error) == headers


@pytest.mark.parametrize(
    ("status", "body", "text", "kind"),
    [
        (400, b'{"error":{"message":"too long"}}', "too long", Kind.INVALID),
        (422, b'{"error":"busy"}', "busy", Kind.INVALID),
        (502, b"<html>", "The engine refused the request with status 502.", Kind.UPSTREAM),
        (404, b"[]", "The engine refused the request with status 404.", Kind.INVALID),
        (404, b"{}", "The engine refused the request with status 404.", Kind.INVALID),
    ],
)
def test_an_engines_refusal_keeps_its_status(status: int, body: bytes, text: str, kind: Kind) -> None:
    error = parse_error_reply(status, body)
    assert (error.message, error.kind, status_of(error)) == (text, kind, status)


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"<html>", "The engine's reply is not JSON: "),
        (None, "The engine's reply is not JSON: "),
        (b"[]", "The engine's reply is not a JSON object."),
    ],
)
def test_a_reply_that_is_not_an_object_is_an_upstream_failure(body: bytes | None, text: str) -> None:
    with pytest.raises(UpstreamFailed, match=text):
        parse_reply(EngineReply(body=body))
    assert parse_reply(EngineReply(body=b'{"a":1}')) == {"a": 1}
