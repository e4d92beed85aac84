"""Errors inside responses of status 200: every shape that servers send, and the words in them."""

from typing import Any

import pytest

from appliance.engines.upstream.error_event import ErrorEvent, find_error, find_words, is_empty

CHOICE = {"index": 0, "delta": {"content": "a"}, "finish_reason": None}


@pytest.mark.parametrize(
    ("event", "message", "status"),
    [
        ({"error": {"message": "boom", "code": 500}}, "boom", 500),
        ({"error": {"message": "boom", "code": "429"}}, "boom", 429),
        ({"error": {"message": "boom"}, "model": "m"}, "boom", None),
        ({"error": "boom"}, "boom", None),
        ({"error": {}}, "", None),
        ({"error": {"type": "x"}, "choices": []}, "", None),
        ({"error": True, "message": "boom"}, "boom", None),
        ({"error": {"code": 502}, "message": "boom"}, "boom", 502),
        ({"error": {"message": "boom"}, "choices": [{"delta": {}, "finish_reason": "error"}]}, "boom", None),
        ({"choices": [{"delta": {}, "finish_reason": "error"}]}, "", None),
        ({"choices": [{"delta": {}, "finish_reason": "error", "error": "boom"}]}, "boom", None),
        ({"object": "error", "message": "boom", "code": 400}, "boom", 400),
        ({"type": "error", "error": {"type": "overloaded_error", "message": "boom"}}, "boom", None),
        ({"type": "error", "message": "boom"}, "boom", None),
        ({"code": 500, "reason": "X", "message": "boom", "metadata": {}}, "boom", 500),
        ({"detail": "boom"}, "boom", None),
        ({"detail": [{"loc": ["body", "n"], "msg": "too large"}]}, "body.n: too large", None),
        ({"errors": [{"message": "boom"}, "bang"]}, "boom; bang", None),
        ({"message": "boom"}, "boom", None),
        ({"error": {"message": "boom", "code": True}}, "boom", None),
        ({"error": {"message": "boom", "code": 99999}}, "boom", None),
    ],
)
def test_every_shape_of_an_error_is_found(event: dict[str, Any], message: str, status: int | None) -> None:
    found = find_error(event)
    assert found is not None
    assert (found.message, found.status) == (message, status)
    assert found.body["error"]["message"] == message


@pytest.mark.parametrize(
    "event",
    [
        {},
        {"type": "ping"},
        {"type": "ping", "message": "still here"},
        {"choices": [CHOICE]},
        {"choices": [CHOICE], "error": None},
        {"choices": [CHOICE], "error": {}},
        {"choices": [CHOICE], "message": "hello", "code": 500},
        {"choices": [], "usage": {}},
        {"choices": None},
        {"choices": [5, "x", None]},
        {"choices": 5},
    ],
)
def test_other_events_are_no_errors(event: dict[str, Any]) -> None:
    assert find_error(event) is None


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, ""),
        (5, ""),
        ({"a": {"b": 1}}, ""),
        ({"message": {"message": {"message": {"message": {"message": "deep"}}}}}, ""),
        ("x" * 5000, "x" * 2000),
        ({"detail": {"msg": "no"}}, "no"),
    ],
)
def test_words_are_found_within_bounds(value: Any, words: str) -> None:
    assert find_words(value) == words


def test_an_error_names_what_it_would_be_as_a_body() -> None:
    assert find_error({"error": {"message": "no", "param": "n", "code": 400}}) == ErrorEvent(
        "no", 400, {"error": {"message": "no", "param": "n", "code": 400}}
    )


@pytest.mark.parametrize(
    ("choices", "empty"),
    [
        ([], True),
        ([{"delta": {"role": "assistant", "content": ""}, "finish_reason": None}], True),
        ([{"delta": {"role": "assistant", "content": None, "tool_calls": []}}], True),
        ([{"delta": {"content": "a"}}], False),
        ([{"delta": {"reasoning": "a"}}], False),
        ([{"delta": {"tool_calls": [{}]}}], False),
        ([{"delta": {}, "finish_reason": "stop"}], False),
        ([{"text": "a"}], False),
        (5, False),
        (["x"], False),
    ],
)
def test_content_is_anything_but_a_role(choices: Any, empty: bool) -> None:
    assert is_empty({"choices": choices}) is empty
    assert not is_empty({"choices": choices, "prompt_progress": {}})
