"""Replies that are recognised in one pass over their bytes are what the reader makes of them that repairs odd ones."""

import os
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from appliance.base import jsons
from appliance.base.errors import UpstreamFailed
from appliance.engines.receipts import Receipt
from appliance.engines.upstream.plain_reply import read_plain_reply
from appliance.engines.upstream.splice import replace_model, with_model
from appliance.engines.upstream.whole_reply import find_reply_error, repair_reply

CASES = max(600, int(os.environ.get("FUZZ_CASES", "0")))


def read_thoroughly(body: bytes) -> tuple[bytes, Receipt] | None:
    """Read a reply as `_read_whole` does where it is not recognised."""
    try:
        value = jsons.loads(body)
        if not isinstance(value, dict) or "choices" not in value or find_reply_error(value) is not None:
            return None
        repaired = repair_reply(value)
    except (jsons.InvalidJson, UpstreamFailed):
        return None
    receipt = Receipt("r")
    receipt.note_usage(value.get("usage"))
    return with_model(jsons.dumps(repaired) if repaired is not value else body, repaired, "new"), receipt


def assert_same(body: bytes) -> None:
    """What is recognised needs no repair: the same bytes for the client, the same counts of tokens."""
    plain = read_plain_reply(body)
    if plain is None or not plain.model or (spliced := replace_model(body, "new")) is None:
        return
    thorough = read_thoroughly(body)
    assert thorough is not None, body
    assert thorough[0] == spliced
    counts = (None, None)
    if plain.usage is not None:
        counts = (plain.usage.prompt_tokens, plain.usage.completion_tokens)
    assert (thorough[1].prompt_tokens, thorough[1].completion_tokens) == counts


SCALARS: list[bytes] = [
    *[b"null", b"true", b"false", b"0", b"7", b"-1", b"1.0", b"2.5", b"1e2", b"1e999", b"9" * 400],
    *[
        b"9007199254740991",
        b"9007199254740992",
        b"18446744073709551616",
        b"NaN",
        b"01",
        b"",
        b"{",
        b"[]",
        b"{}",
    ],
    *[b'"x"', b'""', b'"model"', b'"error"', b'"stop"', b'"\\ud800"', b'"\xff"', b'"\\q"', '"é"'.encode()],
    *[b'[{"type":"text","text":"x"}]', b'{"type":"stop"}', b'{"name":"f","arguments":"{}"}'],
    *[
        b'[{"id":"c","function":{"name":"f","arguments":"{}"}}]',
        b'[{"function":{"name":"f","arguments":{}}}]',
    ],
    *[b'[{"id":1,"function":{"name":"f","arguments":"{}"}}]', b'[{"function":null}]', b"[null]"],
    *[b'{"prompt_tokens":3,"completion_tokens":4}', b'{"prompt_tokens":-1}', b'{"completion_tokens":1.0}'],
    *[b'{"prompt_tokens":true}', b'{"prompt_tokens":null,"completion_tokens":9007199254740992}'],
]
TOP = [
    b"model",
    b"mod\\u0065l",
    b"usage",
    b"error",
    b"choices",
    b"data",
    b"object",
    b"type",
    b"detail",
    b"id",
]
CHOICE = [b"message", b"text", b"finish_reason", b"index", b"delta", b"error", b"model"]
MESSAGE = [
    *[b"role", b"content", b"refusal", b"reasoning_content", b"reasoning", b"thinking"],
    *[b"tool_calls", b"function_call", b"model", b"text"],
]
scalars = st.sampled_from(SCALARS)


def render(fields: list[tuple[bytes, bytes]], blank: bytes = b"") -> bytes:
    parts = [b'"%b"%b:%b%b' % (name, blank, blank, value) for name, value in fields]
    return b"{" + b",".join(parts) + b"}"


def fields(draw: Any, names: list[bytes], size: int) -> list[tuple[bytes, bytes]]:
    return draw(st.lists(st.tuples(st.sampled_from(names), scalars), max_size=size))


@st.composite
def replies(draw: Any) -> bytes:
    """Draw a reply with odd fields at every level, and sometimes odd bytes."""
    blank = draw(st.sampled_from([b"", b"", b" ", b"\n"]))
    message = render([(b"content", b'"hi"'), *fields(draw, MESSAGE, 2)], blank)
    choice = render(
        draw(
            st.permutations([(b"message", message), (b"finish_reason", b'"stop"'), *fields(draw, CHOICE, 1)])
        ),
        blank,
    )
    choices = b"[" + b",".join([choice] * draw(st.integers(0, 2))) + b"]"
    top = [(b"model", b'"up/m"'), (b"choices", choices), *fields(draw, TOP, 2)]
    body = render(draw(st.permutations(top)), blank)
    if draw(st.integers(0, 3)) == 0:
        at = draw(st.integers(0, len(body)))
        body = body[:at] + draw(st.binary(max_size=3)) + body[at + draw(st.integers(0, 2)) :]
    return body


@settings(max_examples=CASES, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(body=replies())
def test_what_is_recognised_needs_no_repair(body: bytes) -> None:
    assert_same(body)


@pytest.mark.parametrize("value", SCALARS)
def test_each_field_with_each_value_is_read_alike(value: bytes) -> None:
    for name in TOP:
        assert_same(b'{"model":"m","choices":[{"message":{"content":"x"}}],"%b":%b}' % (name, value))
        assert_same(b'{"%b":%b,"choices":[{"message":{"content":"x"}}],"model":"m"}' % (name, value))
    for name in CHOICE:
        assert_same(b'{"model":"m","choices":[{"message":{"content":"x"},"%b":%b}]}' % (name, value))
    for name in MESSAGE:
        assert_same(b'{"model":"m","choices":[{"message":{"content":"x","%b":%b}}]}' % (name, value))


@pytest.mark.parametrize("depth", [100, 999, 1000, 1001, 1025, 3000])
def test_what_is_too_deep_for_a_reader_is_not_recognised(depth: int) -> None:
    for before, after in ((b"[", b"]"), (b'{"a":', b"}")):
        assert_same(b'{"model":"m","choices":[{"text":"x"}],"own":%b1%b}' % (before * depth, after * depth))


def test_what_usual_servers_send_is_recognised() -> None:
    body = (
        b'{"id":"c","object":"chat.completion","created":1,"model":"m","choices":[{"index":0,"logprobs":null,'
        b'"message":{"role":"assistant","content":"hi","tool_calls":[],"refusal":null},"finish_reason":"stop"}],'
        b'"usage":{"prompt_tokens":1,"completion_tokens":2,"total_tokens":3}}'
    )
    assert read_plain_reply(body) is not None
    assert_same(body)
