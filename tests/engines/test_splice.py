"""The one change to the bytes of a body: its `model`."""

import json

import pytest

from appliance.engines.upstream.splice import with_model


@pytest.mark.parametrize(
    "raw",
    [
        b'{"model":"x","n":1}',
        b'{ "n" : 1.50, "model" :  "x" }',
        b'{"n":1}',
        b"{}",
        b'{"a":"\\"model\\":\\"no\\"","model":"x"}',
        b'{"messages":[{"role":"model"}],"model":"x"}',
        '{"model":"ü\\"x","m":"ü"}'.encode(),
        b'{"x":{"model":"nested"},"n":1}',
        b'{"x":{"model":"nested"},"model":"x"}',
        b'{"mod\\u0065l":"x","tools":[{"model":"nested"}]}',
        b'{"\\u006D\\u006Fd\\u0065l":"x"}',
        b'{"model":"x","mod\\u0065l":"y"}',
        b'{"mod\\u0065l":"y","model":"x"}',
        b'{"model":"x","model":"y"}',
        b'{"model":null,"x":{"model":"nested"}}',
        b' {"big":123456789012345678901234567890}',
    ],
)
def test_only_the_model_changes(raw: bytes) -> None:
    body = json.loads(raw)
    out = with_model(raw, body, 'new/"name"')
    assert json.loads(out) == {**body, "model": 'new/"name"'}


def test_what_is_not_parsed_is_not_rewritten() -> None:
    raw = b'{"temperature": 0.70, "model": "x",  "seed": 12345678901234567890123}'
    assert (
        with_model(raw, json.loads(raw), "y")
        == b'{"temperature": 0.70, "model":"y",  "seed": 12345678901234567890123}'
    )
