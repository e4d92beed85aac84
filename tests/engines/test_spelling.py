"""Ollama's options in each engine's own spelling, and what an engine does not have."""

from typing import Any

import pytest

from appliance.engines.types import NativeOptions
from appliance.engines.upstream.spelling import spell_options

MIROSTAT = {"mirostat": 2, "mirostat_tau": 5.0, "mirostat_eta": 0.1}
TEMPLATE = {"enable_thinking": True, "thinking": True}


@pytest.mark.parametrize(
    ("kind", "values", "fields", "ignored"),
    [
        ("llamacpp", {"repeat_penalty": 1.1}, {"repeat_penalty": 1.1}, []),
        ("vllm", {"repeat_penalty": 1.1}, {"repetition_penalty": 1.1}, []),
        ("sglang", {"repeat_penalty": 1.1}, {"repetition_penalty": 1.1}, []),
        ("openai", {"repeat_penalty": 1.1}, {"repetition_penalty": 1.1}, []),
        (
            "llamacpp",
            {"repeat_last_n": 32, "typical_p": 0.7},
            {"repeat_last_n": 32, "typical_p": 0.7},
            [],
        ),
        ("vllm", {"repeat_last_n": 32, "typical_p": 0.7}, {}, ["repeat_last_n", "typical_p"]),
        ("llamacpp", MIROSTAT, MIROSTAT, []),
        ("sglang", MIROSTAT, {}, list(MIROSTAT)),
        ("sglang", MIROSTAT | {"mirostat": 0}, {}, []),  # it is off
        ("llamacpp", {"num_keep": 4}, {"n_keep": 4}, []),
        ("llamacpp", {"tfs_z": 0.5, "penalize_newline": True}, {}, ["tfs_z", "penalize_newline"]),
        ("vllm", {"tfs_z": 1.0, "typical_p": 1, "num_keep": 0}, {}, []),  # they mean nothing
    ],
)
def test_options_in_an_engines_spelling(
    kind: str, values: dict[str, Any], fields: dict[str, Any], ignored: list[str]
) -> None:
    options = NativeOptions(values, ignored=["of an attempt before"])
    assert (dict(spell_options(options, kind)), options.ignored) == (fields, ignored)


@pytest.mark.parametrize(
    ("kind", "think", "fields", "ignored"),
    [
        ("llamacpp", None, {}, []),
        ("llamacpp", True, {"chat_template_kwargs": TEMPLATE}, []),
        ("vllm", False, {"chat_template_kwargs": {"enable_thinking": False, "thinking": False}}, []),
        ("sglang", "low", {"chat_template_kwargs": TEMPLATE | {"reasoning_effort": "low"}}, []),
        ("openai", "low", {}, []),  # `reasoning_effort` is in the body
        ("openai", False, {}, ["think"]),
        ("auto", True, {}, ["think"]),
    ],
)
def test_think_where_the_engine_takes_it(
    kind: str, think: bool | str | None, fields: dict[str, Any], ignored: list[str]
) -> None:
    options = NativeOptions({}, think)
    assert (dict(spell_options(options, kind)), options.ignored) == (fields, ignored)
