"""JSON in and out: what orjson cannot do is done by the standard library."""

from typing import Any

import msgspec
import pytest

from appliance.base import jsons


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (b'{"a": [1, 2.5, null, true]}', {"a": [1, 2.5, None, True]}),
        ("123456789012345678901234567890", 1.2345678901234568e29),
        ('"\\ud800"', "\ud800"),
    ],
)
def test_loads(text: bytes | str, value: Any) -> None:
    assert jsons.loads(text) == value


@pytest.mark.parametrize("text", [b"", b"{", b"{'a': 1}", b"[1,]", b"\xff", "[" * 100_000])
def test_invalid_json_is_named_with_its_position(text: bytes | str) -> None:
    with pytest.raises(jsons.InvalidJson):
        jsons.loads(text)
    with pytest.raises(jsons.InvalidJson, match="line 2 column 1"):
        jsons.loads(b"[1,\n}")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"a": 1, 2: "ü"}, b'{"a":1,"2":"\xc3\xbc"}'),
        ([10**30], b"[1000000000000000000000000000000]"),
        ({"path": object}, b'{"path":"<class \'object\'>"}'),
    ],
)
def test_dumps(value: Any, text: bytes) -> None:
    assert jsons.dumps(value) == text
    assert jsons.dumps_text(value) == text.decode()


def test_dumps_pretty_is_indented() -> None:
    assert jsons.dumps_pretty({"a": {1: object}}) == '{\n  "a": {\n    "1": "<class \'object\'>"\n  }\n}'


@pytest.mark.parametrize(
    ("data", "is_read"),
    [
        (b'{"a": 1}', True),
        (b'{"a": 1, "x": "\xff"}', False),  # what is skipped is UTF-8, too
        (b'{"a": ' + b"[" * 3000 + b"]" * 3000 + b"}", False),
        (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", False),
        (b"[]", False),
        (b"{", False),
    ],
)
def test_what_other_readers_could_not_read_is_not_read_by_types(data: bytes, is_read: bool) -> None:
    decode = msgspec.json.Decoder(dict[str, Any]).decode
    assert (jsons.read_typed(decode, data) is not None) is is_read
