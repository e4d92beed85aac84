"""A JSON body and the types of its known fields."""

from typing import Any

import pytest

from appliance.base.errors import Invalid
from appliance.front.pipeline.body import (
    OPENAI_TYPES,
    check_messages,
    check_types,
    json_type_of,
    read_object,
)


@pytest.mark.parametrize(
    ("body", "code", "text"),
    [
        (b"", "missing_body", "The request has no body. Send a JSON object."),
        (b"  \n", "missing_body", "The request has no body"),
        (b"{", "invalid_json", "The body is not valid JSON: "),
        (b"[1]", "invalid_json", "must be a JSON object, not an array"),
        (b'"x"', "invalid_json", "must be a JSON object, not a string"),
        (b"null", "invalid_json", "must be a JSON object, not null"),
        ('{"a": 1}'.encode("utf-16"), "invalid_json", "The body is not valid JSON: it is not UTF-8."),
        ('{"a": 1}'.encode("utf-16-le"), "invalid_json", "it is not UTF-8"),
        ('{"a": 1}'.encode("utf-32-be"), "invalid_json", "it is not UTF-8"),
        (b'{"a": "\xff"}', "invalid_json", "it is not UTF-8"),
        (b'{"a": "\xed\xa0\x80"}', "invalid_json", "it is not UTF-8"),
        (b'{"temperature": NaN}', "invalid_json", "NaN is not a number of JSON"),
        (b'{"temperature": [-Infinity]}', "invalid_json", "-Infinity is not a number of JSON"),
        (b'{"temperature": 1e999}', "invalid_json", "1e999 is not a number of JSON"),
        (b"[" * 100_000, "invalid_json", "The body is not valid JSON: "),
    ],
)
def test_a_body_that_is_not_an_object_is_refused(body: bytes, code: str, text: str) -> None:
    with pytest.raises(Invalid, match=text) as caught:
        read_object(body)
    assert caught.value.code == code


def test_all_fields_of_an_object_are_read() -> None:
    assert read_object(b' {"a": 1, "b": null} ') == {"a": 1, "b": None}


@pytest.mark.parametrize(
    ("body", "value"),
    [
        (b'\xef\xbb\xbf{"a": 1}', {"a": 1}),  # a byte order mark
        (b'{"a": "\\ud800"}', {"a": "\ud800"}),  # half a character, escaped
        (b'{"a": 1' + b"0" * 400 + b"}", {"a": 10**400}),
        (b'{"model": "a", "mod\\u0065l": "b"}', {"model": "b"}),
    ],
)
def test_what_has_one_meaning_is_read(body: bytes, value: dict[str, Any]) -> None:
    assert read_object(body) == value


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("model", 1, "`model` must be a string, not an integer."),
        ("stream", 1, "`stream` must be true or false, not an integer."),
        ("temperature", "hot", "`temperature` must be a number, not a string."),
        ("temperature", True, "`temperature` must be a number, not a boolean."),
        ("n", 1.5, "`n` must be an integer, not a number."),
        ("stop", {}, "`stop` must be a string or an array, not an object."),
        ("tools", "x", "`tools` must be an array, not a string."),
        ("tool_choice", [], "`tool_choice` must be a string or an object, not an array."),
    ],
)
def test_a_known_field_of_a_wrong_type_is_named(name: str, value: Any, text: str) -> None:
    with pytest.raises(Invalid) as caught:
        check_types({name: value}, OPENAI_TYPES)
    assert (caught.value.message, caught.value.param, caught.value.code) == (text, name, "invalid_type")


def test_null_counts_as_absent_and_unknown_fields_pass() -> None:
    check_types({"model": None, "temperature": 1, "top_p": 0.5, "x_own": object()}, OPENAI_TYPES)


@pytest.mark.parametrize(
    ("messages", "param", "code"),
    [
        (None, "messages", "missing_required_parameter"),
        ([], "messages", "missing_required_parameter"),
        (["hello"], "messages.0", "invalid_type"),
        ([{"content": "x"}], "messages.0.role", "missing_required_parameter"),
        ([{"role": 1}], "messages.0.role", "invalid_type"),
        ([{"role": "user"}, {"role": "user", "content": 5}], "messages.1.content", "invalid_type"),
    ],
)
def test_a_fault_in_messages_is_named_by_its_path(messages: Any, param: str, code: str) -> None:
    with pytest.raises(Invalid, match=r"`messages(\.\d)?") as caught:
        check_messages(messages)
    assert (caught.value.param, caught.value.code) == (param, code)


def test_content_may_be_text_parts_or_null() -> None:
    check_messages([{"role": "a", "content": "x"}, {"role": "b", "content": []}, {"role": "c"}])


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (None, "null"),
        (True, "a boolean"),
        (1, "an integer"),
        (1.5, "a number"),
        ("", "a string"),
        ([], "an array"),
        ({}, "an object"),
    ],
)
def test_types_have_the_names_of_json(value: Any, name: str) -> None:
    assert json_type_of(value) == name
