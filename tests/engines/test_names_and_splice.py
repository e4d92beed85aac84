"""Names that mean the model, and the one change to a body's bytes."""

import json

import pytest

from appliance.engines.aliases import Names, compact
from appliance.engines.upstream.splice import with_model

NAMES = Names(
    upstream="meta-llama/llama-3.2-3b-instruct",
    public="meta-llama/llama-3.2-3b-instruct/fp-16-fast-vllm-1",
    aliases=["llama3.2-3b-instruct"],
)


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("meta-llama/llama-3.2-3b-instruct", True),
        ("META-LLAMA/Llama-3.2-3B-Instruct", True),
        ("metallamallama323binstruct", True),
        ("meta-llama/llama-3.2-3b-instruct/fp-16-fast-vllm-99", True),
        ("meta-llama/llama-3.2-3b-instruct:fp16", True),
        ("llama3.2-3b-instruct:fp-16", True),
        ("llama3.2-3b-instruct:latest", True),
        ("llama_3_2_3b_instruct", True),
        ("gpt-4", False),
        ("", False),
        ("llama-3.2-1b-instruct", False),
    ],
)
def test_spellings(name: str, known: bool) -> None:
    assert NAMES.matches(name) is known


def test_the_reported_names_are_those_of_the_ancestor_without_repeats() -> None:
    assert NAMES.reported == (
        "llama3.2-3b-instruct",
        NAMES.upstream,
        NAMES.public,
        compact(NAMES.upstream),
        compact(NAMES.public),
    )


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
