"""Ollama's requests into OpenAI's. Pure: it decides what is asked of the engines and refuses what cannot be read.

Source: Ollama's API types and `options`; system A, /api/generate (`messages`, `options.max_tokens`).
"""

import re
from dataclasses import dataclass, field
from typing import Any

from appliance.base.errors import Invalid
from appliance.engines.types import Operation
from appliance.front.ollama.context import unpack
from appliance.front.ollama.messages import messages_up, tools_up
from appliance.front.pipeline.body import check_messages, json_type_of

TYPES: dict[str, Any] = {  # of every field that some address of this dialect knows
    "model": str,
    "name": str,
    "prompt": str,
    "system": str,
    "suffix": str,
    "template": str,
    "messages": list,
    "images": list,
    "context": list,
    "tools": list,
    "stream": bool,
    "raw": bool,
    "truncate": bool,
    "shift": bool,
    "logprobs": bool,
    "insecure": bool,
    "verbose": bool,
    "top_logprobs": int,
    "dimensions": int,
    "options": dict,
}
OPTIONS: dict[str, tuple[str, type]] = {  # Ollama's option → (OpenAI's field, type)
    "temperature": ("temperature", float),
    "top_p": ("top_p", float),
    "top_k": ("top_k", int),
    "min_p": ("min_p", float),
    "seed": ("seed", int),
    "presence_penalty": ("presence_penalty", float),
    "frequency_penalty": ("frequency_penalty", float),
    "repeat_penalty": ("repetition_penalty", float),
    "num_predict": ("max_tokens", int),
    "max_tokens": ("max_tokens", int),
    "stop": ("stop", list),
}
LOCAL_OPTIONS: dict[str, type] = {  # about an engine on the same machine; checked and left out
    "num_ctx": int,
    "num_keep": int,
    "num_batch": int,
    "num_gpu": int,
    "main_gpu": int,
    "num_thread": int,
    "use_mmap": bool,
    "use_mlock": bool,
    "numa": bool,
    "low_vram": bool,
    "f16_kv": bool,
    "vocab_only": bool,
    "logits_all": bool,
    "embedding_only": bool,
    "typical_p": float,
    "repeat_last_n": int,
    "tfs_z": float,
    "mirostat": int,
    "mirostat_tau": float,
    "mirostat_eta": float,
    "penalize_newline": bool,
}
TYPE_NAMES = {float: "float32", int: "integer", bool: "boolean", list: "array"}
EFFORTS = {"low": "low", "medium": "medium", "high": "high", "max": "high"}  # OpenAI's scale ends at high
MOST_TOP_LOGPROBS = 20
FOREVER = -1.0  # seconds: a stay without an end, as the model manager takes it
NEVER_AFTER_S = 2**63 / 1e9  # 292 years: the longest time that Ollama can hold, and its way to say never
RAW_MAX_TOKENS = (
    512  # where `num_predict` is absent: the completions API would stop after 16; system A's own default
)
_DURATION = re.compile(r"[+-]?(?:(?:\d+(?:\.\d*)?|\.\d+)(?:ns|us|µs|μs|ms|s|m|h))+")
_TERM = re.compile(r"([\d.]+)(ns|us|µs|μs|ms|s|m|h)")
_UNIT_S = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


@dataclass(slots=True)
class TranslatedRequest:
    """One request of Ollama's, translated.

    body      OpenAI's, without `model` and `stream`
    ignored   names of what could not be used and was no mistake: unknown options, as Ollama warns about them
    """

    operation: Operation
    body: dict[str, Any]
    ignored: list[str] = field(default_factory=list)


def keep_alive_s(value: Any) -> float | None:
    """Read keep_alive.

    Takes   value: seconds as a number, or a duration such as "5m", "1h30m", "-1s", "0"
    Gives   seconds; FOREVER for a negative or an endless one; None when absent
    Raises  Invalid
    """
    if value is None:
        return None
    if (
        isinstance(value, (int, float)) and not isinstance(value, bool) and value == value
    ):  # JSON as it is written may hold a NaN
        return float(value) if 0 <= value <= NEVER_AFTER_S else FOREVER
    if isinstance(value, str) and (value.lstrip("+-") == "0" or _DURATION.fullmatch(value)):
        total = sum(float(number) * _UNIT_S[unit] for number, unit in _TERM.findall(value))
        return FOREVER if total > NEVER_AFTER_S or (value.startswith("-") and total) else total
    raise Invalid(
        '`keep_alive` must be seconds as a number, or a duration such as "5m" or "-1s".', param="keep_alive"
    )


def options_up(options: dict[str, Any] | None) -> tuple[dict[str, Any], list[str]]:
    """Translate `options`.

    Gives   (fields of OpenAI's, names that nobody knows)
    Raises  Invalid: a known option of a wrong type, with `options.<name>` as param
    """
    fields: dict[str, Any] = {}
    unknown = []
    for name, value in (options or {}).items():
        known, kind = OPTIONS.get(name) or ("", LOCAL_OPTIONS.get(name))
        if kind is None:
            unknown.append(name)
        if kind is None or value is None:
            continue
        value = _option(name, value, kind)
        if known and not _is_default(name, value):
            fields[known] = value
    return fields, unknown


def _option(name: str, value: Any, kind: type) -> Any:
    """Give a known option's value in its type, or raise."""
    if kind is list:
        value = [value] if isinstance(value, str) else value
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            return value
    elif kind is bool:
        if isinstance(value, bool):
            return value
    elif (
        isinstance(value, (int, float))
        and not isinstance(value, bool)
        and (kind is float or float(value).is_integer())
    ):
        return int(value) if kind is int else value
    raise Invalid(f'option "{name}" must be of type {TYPE_NAMES[kind]}', param=f"options.{name}")


def _is_default(name: str, value: Any) -> bool:
    """Whether a value says what leaving the field out says.

    1. a limit of 0, -1 or -2: until the answer ends     2. a negative seed: a random one     3. no stop words
    """
    if name in {"num_predict", "max_tokens"}:  # 1
        return bool(value <= 0)
    if name == "seed":  # 2
        return bool(value < 0)
    return name == "stop" and not value  # 3


def chat_up(ask: dict[str, Any]) -> TranslatedRequest:
    """Translate a request to /api/chat.

    Raises  Invalid: with the field at fault
    """
    check_messages(ask["messages"])
    body: dict[str, Any] = {"messages": messages_up(ask["messages"])}
    if ask.get("tools"):
        body["tools"] = tools_up(ask["tools"])
    fields, ignored = _common(ask)
    return TranslatedRequest(Operation.CHAT, body | fields | _logprobs(ask, Operation.CHAT), ignored)


def generate_up(ask: dict[str, Any]) -> TranslatedRequest:
    """Translate a request to /api/generate.

    1. raw                  → a completion: the prompt goes up as it is
    2. a suffix             → a completion that fills the gap
    3. `messages`           → a chat, as in system A
    4. else                 → a chat: what `context` holds, the system text, the prompt with its images

    Raises  Invalid: with the field at fault
    """
    if ask.get("raw") and any(ask.get(name) for name in ("template", "system", "context")):
        raise Invalid("raw mode does not support template, system, or context", param="raw")
    if ask.get("template"):
        raise Invalid(
            "`template` cannot be used here: the engine renders its model's own. Leave it out, or send a prompt that is "
            "complete with `raw`.",
            param="template",
        )
    fields, ignored = _common(ask)
    if ask.get("raw") or ask.get("suffix"):  # 1, 2
        return _completion(ask, fields, ignored)
    if ask.get("messages"):  # 3
        check_messages(ask["messages"])
        messages = messages_up(ask["messages"])
    else:  # 4
        messages = unpack(ask["context"]) if ask.get("context") else []
        messages += messages_up(
            [{"role": "user", "content": ask.get("prompt") or "", "images": ask.get("images")}], where=""
        )
    if ask.get("system"):
        messages = [
            {"role": "system", "content": ask["system"]},
            *(m for m in messages if m["role"] != "system"),
        ]
    return TranslatedRequest(
        Operation.CHAT, {"messages": messages, **fields, **_logprobs(ask, Operation.CHAT)}, ignored
    )


def _completion(ask: dict[str, Any], fields: dict[str, Any], ignored: list[str]) -> TranslatedRequest:
    if ask.get("images"):
        raise Invalid(
            f"`images` cannot be used with `{'raw' if ask.get('raw') else 'suffix'}`.", param="images"
        )
    body: dict[str, Any] = {"prompt": ask.get("prompt") or "", "max_tokens": RAW_MAX_TOKENS, **fields}
    if ask.get("suffix"):
        body["suffix"] = ask["suffix"]
    body.pop("reasoning_effort", None)
    ignored = ignored + [
        name for name in ("system", "context") if ask.get(name)
    ]  # a gap has no conversation around it
    return TranslatedRequest(Operation.COMPLETION, body | _logprobs(ask, Operation.COMPLETION), ignored)


def _common(ask: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Translate what both share: options, format, think; check keep_alive.

    Gives   (fields of OpenAI's, names that were ignored)
    """
    fields, unknown = options_up(ask.get("options"))
    keep_alive_s(ask.get("keep_alive"))
    wanted = ask.get("format")
    if wanted == "json":
        fields["response_format"] = {"type": "json_object"}
    elif isinstance(wanted, dict):
        fields["response_format"] = {
            "type": "json_schema",
            "json_schema": {"name": "answer", "schema": wanted},
        }
    elif wanted not in (None, ""):
        raise Invalid('`format` must be "json" or a JSON schema object.', param="format")
    think = ask.get("think")
    if isinstance(think, str) and think in EFFORTS:
        fields["reasoning_effort"] = EFFORTS[think]
    elif isinstance(think, str):
        raise Invalid(
            f'invalid think value: "{think[:64]}" (must be "high", "medium", "low", "max", true, or false)',
            param="think",
        )
    elif think is not None and not isinstance(think, bool):
        raise Invalid(
            f"`think` must be true, false, or one of low, medium, high, max, not {json_type_of(think)}.",
            param="think",
        )
    return fields, unknown


def _logprobs(ask: dict[str, Any], operation: Operation) -> dict[str, Any]:
    """Translate log-probabilities, which the two operations spell differently."""
    top = ask.get("top_logprobs") or 0
    if not 0 <= top <= MOST_TOP_LOGPROBS:
        raise Invalid("top_logprobs must be between 0 and 20", param="top_logprobs")
    if not ask.get("logprobs"):
        return {}
    return {"logprobs": top} if operation is Operation.COMPLETION else {"logprobs": True, "top_logprobs": top}
