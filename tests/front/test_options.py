"""How a request is routed, from its headers."""

import pytest

from appliance.base.errors import Invalid
from appliance.engines.types import NO_OPTIONS
from appliance.front.pipeline.options import parse_options

PEER = "10.0.0.9"


def test_without_headers_there_are_no_options_but_the_flow() -> None:
    assert parse_options({}, "") == NO_OPTIONS
    assert parse_options({}, PEER).flow == PEER


def test_a_time_limit_is_read_and_anything_else_refused() -> None:
    assert parse_options({"x-timelimit": "1m30s"}, PEER).time_limit_s == 90.0
    with pytest.raises(Invalid, match="`X-Timelimit` must be a time"):
        parse_options({"x-timelimit": "soon"}, PEER)


@pytest.mark.parametrize(
    ("value", "priority"),
    [("high", 0), ("normal", 1), ("low", 2), (" High ", 0), ("NORMAL", 1)],
)
def test_a_priority_is_a_word(value: str, priority: int) -> None:
    assert parse_options({"x-request-priority": value}, PEER).priority == priority


@pytest.mark.parametrize("value", ["", "urgent", "0", "x" * 200])
def test_any_other_priority_is_refused(value: str) -> None:
    with pytest.raises(Invalid, match="X-Request-Priority must be high, normal or low, not") as caught:
        parse_options({"x-request-priority": value}, PEER)
    assert (caught.value.code, caught.value.param) == ("invalid_header", "X-Request-Priority")
    assert len(caught.value.message) < 120


@pytest.mark.parametrize(
    ("value", "must_stay", "is_local_only"),
    [
        ("1", False, True),
        ("yes", False, True),
        (" ON ", False, True),
        ("true", False, True),
        ("0", False, False),
        ("", False, False),
        ("off", False, False),
        ("0", True, True),  # the key decides: the header cannot open what the key closes
        ("1", True, True),
    ],
)
def test_a_request_may_be_kept_local(value: str, must_stay: bool, is_local_only: bool) -> None:
    options = parse_options({"x-appliance-stay-local": value}, PEER, must_stay_local=must_stay)
    assert options.is_local_only is is_local_only


def test_a_local_key_keeps_requests_without_the_header() -> None:
    assert parse_options({}, PEER, must_stay_local=True).is_local_only


@pytest.mark.parametrize("must_stay", [False, True])
def test_any_other_word_for_local_is_refused(must_stay: bool) -> None:
    with pytest.raises(Invalid, match="x-appliance-stay-local must be 1 or 0, not 'perhaps'"):
        parse_options({"x-appliance-stay-local": "perhaps"}, PEER, must_stay_local=must_stay)


def test_a_backend_may_be_named() -> None:
    assert parse_options({"x-appliance-backend": " b1 "}, PEER).pin == "b1"


@pytest.mark.parametrize("value", ["c-1", "x" * 512, "a b/c"])
def test_the_conversation_is_handed_on(value: str) -> None:
    options = parse_options({"x-conversation-id": value, "x-request-priority": "low"}, PEER)
    assert (options.header_lines, options.priority) == (f"X-Conversation-Id: {value}\r\n".encode(), 2)
    assert parse_options({"x-request-priority": "low"}, PEER).header_lines == b""


@pytest.mark.parametrize("value", ["x" * 513, "caf\xe9", "a\r\nHost: b", "a\x00"])
def test_a_conversation_that_is_no_short_text_is_refused(value: str) -> None:
    with pytest.raises(
        Invalid, match="X-Conversation-Id must be at most 512 printable ASCII characters"
    ) as caught:
        parse_options({"x-conversation-id": value}, PEER)
    assert (caught.value.code, caught.value.param) == ("invalid_header", "X-Conversation-Id")
    assert caught.value.message.isascii()
    assert caught.value.message.isprintable()


def test_callers_are_identified_by_key_then_by_address() -> None:
    by_key = parse_options({"authorization": "Bearer secret-key"}, PEER).flow
    assert by_key == parse_options({"x-api-key": "secret-key"}, "10.0.0.1").flow
    assert by_key != parse_options({"x-api-key": "other-key"}, PEER).flow
    assert "secret" not in by_key
    assert parse_options({}, "10.0.0.1").flow == "10.0.0.1"
