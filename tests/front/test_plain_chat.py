"""Chats that are recognised in one pass over their bytes mean what they mean to the reader that says what is wrong."""

import os
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from appliance.base import jsons
from appliance.base.errors import Invalid
from appliance.engines.upstream.exchange import count_choices
from appliance.engines.upstream.splice import replace_model
from appliance.front.openai.plain_chat import PlainChat, read_plain_chat
from appliance.front.pipeline.body import OPENAI_TYPES, check_messages, check_types, read_object

CASES = max(600, int(os.environ.get("FUZZ_CASES", "0")))
MESSAGES = b'"messages":[{"role":"user","content":"hi"}]'


def read_thoroughly(body: bytes) -> dict[str, Any] | None:
    try:
        value = read_object(body)
        check_types(value, OPENAI_TYPES)
        check_messages(value.get("messages"))
    except Invalid:
        return None
    return value


def assert_same(body: bytes) -> None:
    """What is recognised is right, and means the same; the same bytes with another model are sent on."""
    plain = read_plain_chat(body)
    if plain is None:
        return
    value = read_thoroughly(body)
    assert value is not None, body
    assert (plain.model or "", bool(plain.stream)) == (value.get("model") or "", bool(value.get("stream")))
    alone = {name: value[name] for name in value if name != "prompt"}  # which a chat does not have
    assert max(1, plain.n or 1) == count_choices(alone)
    if plain.model and (spliced := replace_model(body, "new")) is not None:
        assert jsons.loads_utf8(spliced) == {**value, "model": "new"}


def render(fields: list[tuple[bytes, bytes]], blank: bytes = b"") -> bytes:
    parts = [b'"%b"%b:%b%b' % (name, blank, blank, value) for name, value in fields]
    return b"{" + blank + (b"," + blank).join(parts) + blank + b"}"


SCALARS: list[bytes] = [
    *[b"null", b"true", b"false", b"0", b"1", b"3", b"-1", b"1.0", b"1e2", b"0.5", b"-0", b"1E-9"],
    *[b"1e999", b"-1E400", b"9" * 400, b"18446744073709551615", b"18446744073709551616"],
    *[b"9223372036854775807", b"9223372036854775808", b"-9223372036854775808", b"-9223372036854775809"],
    *[b"NaN", b"Infinity", b"01", b"1.", b"+1", b"tru", b"", b"[]", b"{}", b"[1e999]", b'{"model":"m"}'],
    *[b'"m"', b'""', b'"model"', b'"\\u006dodel"', b'"\\ud800"', b'"\\ud83c\\udf89"', '"é"'.encode()],
    *[b'"\xff"', b'"a\\"b"', b'"\\q"', b'"a\nb"', b'"user"'],
]
KEYS: list[bytes] = [
    *[name.encode() for name in OPENAI_TYPES],
    *[name.encode() for name in PlainChat.__struct_fields__],
    *[b"mod\\u0065l", b"\\u006dodel", b"strea\\u006d", b"x", b"role", b"content", b"prompt", b"\xff", b"\\q"],
]
values = st.recursive(
    st.sampled_from(SCALARS),
    lambda inner: (
        st.lists(inner, max_size=3).map(lambda parts: b"[" + b",".join(parts) + b"]")
        | st.lists(st.tuples(st.sampled_from(KEYS), inner), max_size=3).map(render)
    ),
    max_leaves=5,
)
BLANKS = [b"", b"", b"", b" ", b"\n\t\r ", b"\x0b", b"\xa0"]


@st.composite
def chats(draw: Any) -> bytes:
    """Draw a chat whose fields, and those of its messages, have odd values, names and bytes."""
    message = [(b"role", b'"user"'), (b"content", b'"hi"')]
    if draw(st.booleans()):
        message += draw(
            st.lists(
                st.tuples(st.sampled_from([*KEYS, b"role", b"content", b"name", b"tool_calls"]), values),
                max_size=2,
            )
        )
    messages = b"[" + b",".join([render(message)] * draw(st.integers(1, 2))) + b"]"
    fields = [(b"messages", messages)]
    fields += draw(st.lists(st.tuples(st.sampled_from(KEYS), values), max_size=4))
    fields = draw(st.permutations(fields))
    body = render(fields, draw(st.sampled_from(BLANKS)))
    if draw(st.integers(0, 3)) == 0:
        at = draw(st.integers(0, len(body)))
        body = body[:at] + draw(st.binary(max_size=3)) + body[at + draw(st.integers(0, 2)) :]
    return draw(st.sampled_from([b"", b"", b"", b"\xef\xbb\xbf", b" "])) + body


@settings(max_examples=CASES, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(body=chats())
def test_what_is_recognised_is_right_and_means_the_same(body: bytes) -> None:
    assert_same(body)


@pytest.mark.parametrize("value", SCALARS)
@pytest.mark.parametrize("name", sorted(set(KEYS)))
def test_each_field_with_each_value_is_read_alike(name: bytes, value: bytes) -> None:
    assert_same(b'{%b,"%b":%b}' % (MESSAGES, name, value))
    assert_same(b'{"%b":%b,%b}' % (name, value, MESSAGES))
    assert_same(b'{"messages":[{"role":"user","content":"hi","%b":%b}]}' % (name, value))


@pytest.mark.parametrize("depth", [999, 1000, 1001, 1025, 3000])
def test_what_is_too_deep_for_a_reader_is_not_recognised(depth: int) -> None:
    for before, after in ((b"[", b"]"), (b'{"a":', b"}")):
        deep = before * depth + b"1" + after * depth
        assert_same(b'{%b,"metadata":%b}' % (MESSAGES, deep))
        assert_same(b'{"messages":[{"role":"user","content":[%b]}]}' % deep)


@pytest.mark.parametrize(
    "more",
    [
        b'"model":"m"',
        b'"model":"m","stream":true,"temperature":1,"max_tokens":9,"seed":-1',
        b'"model":"m","stream":null,"stop":["x"],"tools":[{"type":"function"}],"tool_choice":"auto"',
        b'"logprobs":true,"top_logprobs":2,"user":"u","metadata":{"a":"b"},"response_format":{"type":"x"}',
        b'"stream_options":{"include_usage":true},"top_k":4,"chat_template_kwargs":{"a":1}',
    ],
)
def test_what_usual_clients_send_is_recognised(more: bytes) -> None:
    assert read_plain_chat(b"{%b,%b}" % (MESSAGES, more)) is not None
    called = (
        b'{"role":"assistant","content":null,"tool_calls":[{"id":"c"}]},{"role":"tool","tool_call_id":"c"}'
    )
    assert read_plain_chat(b'{"messages":[%b],%b}' % (called, more)) is not None


@pytest.mark.parametrize("number", [b"1e999", b"-1e400", b"1.5E+309"])
@pytest.mark.parametrize(
    "place", [b'"own":%b', b'"metadata":{"a":%b}', b'"tools":[%b]', b'"temperature":%b', b'"x":[{"y":%b}]']
)
def test_a_number_that_no_reader_has_is_refused_wherever_it_is(place: bytes, number: bytes) -> None:
    body = b"{%b,%b}" % (MESSAGES, place % number)
    assert read_plain_chat(body) is None
    with pytest.raises(Invalid, match="is not a number of JSON"):
        read_object(body)


def test_every_field_that_has_a_type_is_known() -> None:
    names = set(PlainChat.__struct_fields__)
    assert set(OPENAI_TYPES) <= names
    kinds = {field.name: field.type for field in msgspec.structs.fields(PlainChat)}
    assert {name for name in names if kinds[name] is Any} == names - set(OPENAI_TYPES)
