"""Which names mean the hosted model."""

import pytest

from appliance.engines.aliases import ModelNames, compact_name

NAMES = ModelNames(
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
def test_a_name_may_be_spelt_in_many_ways(name: str, known: bool) -> None:
    assert NAMES.matches(name) is known


def test_the_reported_names_come_once_each() -> None:
    assert NAMES.reported == (
        "llama3.2-3b-instruct",
        NAMES.upstream,
        NAMES.public,
        compact_name(NAMES.upstream),
        compact_name(NAMES.public),
    )
