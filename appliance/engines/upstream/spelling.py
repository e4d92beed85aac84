"""Options that each kind of engine spells in its own way, or does not have. Pure.

Source: the README of llama.cpp's llama-server; the sampling parameters of vLLM's and SGLang's OpenAI servers,
and their documentation of reasoning models (`enable_thinking` of Qwen's templates, `thinking` of DeepSeek's).
"""

from typing import Any

from appliance.engines.types import NativeOptions

# Ollama's name → the engine's.
_LLAMACPP = {
    "repeat_penalty": "repeat_penalty",
    "repeat_last_n": "repeat_last_n",
    "typical_p": "typical_p",
    "mirostat": "mirostat",
    "mirostat_tau": "mirostat_tau",
    "mirostat_eta": "mirostat_eta",
    "num_keep": "n_keep",
}
_OTHERS = {"repeat_penalty": "repetition_penalty"}
# Values that mean the same as no value at all: nothing is lost without them.
_NEUTRAL = {"repeat_penalty": 1, "typical_p": 1, "tfs_z": 1, "mirostat": 0, "num_keep": 0}
# These mean nothing as long as `mirostat` is off.
_OF_MIROSTAT = frozenset({"mirostat_tau", "mirostat_eta"})
# Kinds that hand `chat_template_kwargs` to the model's chat template.
_TEMPLATED = frozenset({"llamacpp", "vllm", "sglang"})


def spell_options(options: NativeOptions, kind: str) -> tuple[tuple[str, Any], ...]:
    """Return options as fields of a request to a kind of engine; name in `ignored` what it does not have.

    Args:
        options: `ignored` is replaced: it is about the engine that is asked last.
        kind: Of the engine; "openai" = any other one that speaks OpenAI's dialect.
    """
    spelling = _LLAMACPP if kind == "llamacpp" else _OTHERS
    fields, ignored = [], []
    for name, value in options.values.items():
        if name in spelling:
            fields.append((spelling[name], value))
        elif not _is_neutral(name, options.values):
            ignored.append(name)
    if options.think is not None:
        if kind in _TEMPLATED:
            fields.append(("chat_template_kwargs", template_fields(options.think)))
        elif isinstance(options.think, bool):  # a level is `reasoning_effort`, a field of OpenAI's
            ignored.append("think")
    options.ignored = ignored
    return tuple(fields)


def _is_neutral(name: str, values: dict[str, Any]) -> bool:
    if name in _OF_MIROSTAT:
        return not values.get("mirostat")
    return name in _NEUTRAL and bool(values[name] == _NEUTRAL[name])


def template_fields(think: bool | str) -> dict[str, Any]:
    """Return what templates of reasoning models read: whether to reason, or how much."""
    fields: dict[str, Any] = {"enable_thinking": bool(think), "thinking": bool(think)}
    if isinstance(think, str):
        fields["reasoning_effort"] = think
    return fields
