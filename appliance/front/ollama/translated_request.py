"""Ollama's requests as OpenAI's. Pure: it translates, and refuses what is invalid.

Source: Ollama's API types and `options`; `messages` in /api/generate and `options.max_tokens`:
docs/compatibility.md.
"""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from appliance.base.errors import Invalid
from appliance.engines.types import NativeOptions, Operation
from appliance.front.ollama.context import unpack_context
from appliance.front.ollama.messages import to_openai_messages, to_openai_tools
from appliance.front.pipeline.body import check_messages, json_type_of
from appliance.front.pipeline.durations import parse_keep_alive_s

TYPES: dict[str, Any] = {  # of every field of any address
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
    "num_predict": ("max_tokens", int),
    "max_tokens": ("max_tokens", int),
    "stop": ("stop", list),
}
NATIVE_OPTIONS: dict[str, type] = {  # spelled in each engine's own way (engines/upstream/spelling.py)
    "repeat_penalty": float,
    "repeat_last_n": int,
    "typical_p": float,
    "tfs_z": float,
    "mirostat": int,
    "mirostat_tau": float,
    "mirostat_eta": float,
    "penalize_newline": bool,
    "num_keep": int,
}
LOCAL_OPTIONS: dict[str, type] = {  # about an engine that runs for one request: checked, not sent on
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
}
ROUTED_OPTIONS: dict[str, type] = {"num_ctx": int}  # decides which backend answers; not sent on
_OTHER_OPTIONS = NATIVE_OPTIONS | LOCAL_OPTIONS | ROUTED_OPTIONS
TYPE_NAMES = {float: "float32", int: "integer", bool: "boolean", list: "array"}
EFFORTS = {"low": "low", "medium": "medium", "high": "high", "max": "high"}  # OpenAI's scale ends at high
MAX_TOP_LOGPROBS = 20
RAW_MAX_TOKENS = 512  # where `num_predict` is absent: the completions API would stop after 16


@dataclass(slots=True)
class TranslatedRequest:
    """One request of Ollama's, translated.

    Attributes:
        operation: What the engines are asked for.
        body: OpenAI's, without `model` and `stream`.
        ignored: Names of valid fields that cannot be used, and of unknown options. Ollama logs them, too.
        native: What each engine spells in its own way; None = nothing.
    """

    operation: Operation
    body: dict[str, Any]
    ignored: list[str] = field(default_factory=list)
    native: NativeOptions | None = None


class Sampling(NamedTuple):
    """Ollama's `options`, translated.

    Attributes:
        fields: OpenAI's.
        native: By Ollama's names: what each engine spells in its own way.
        ignored: Names of unknown options, and of those that cannot be used.
    """

    fields: dict[str, Any]
    native: dict[str, Any]
    ignored: list[str]


def to_openai_options(options: dict[str, Any] | None) -> Sampling:
    """Translate `options`.

    Raises:
        Invalid: A known option has the wrong type; `param` is `options.<name>`.
    """
    fields: dict[str, Any] = {}
    native: dict[str, Any] = {}
    ignored = []
    for name, value in (options or {}).items():
        known, kind = OPTIONS.get(name) or ("", _OTHER_OPTIONS.get(name))
        if kind is None:
            ignored.append(name)
        if kind is None or value is None:
            continue
        value = _option(name, value, kind)
        if name in NATIVE_OPTIONS:
            native[name] = value
        elif name in LOCAL_OPTIONS:
            ignored.append(name)
        elif known and not _is_default(name, value):
            fields[known] = value
    return Sampling(fields, native, ignored)


def _option(name: str, value: Any, kind: type) -> Any:
    """Return a known option's value in its type; raise Invalid for another type."""
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
    """Whether a value means the same as no value.

    1. a limit of 0, -1 or -2: no limit     2. a negative seed: a random one     3. no stop words
    """
    if name in {"num_predict", "max_tokens"}:  # 1
        return bool(value <= 0)
    if name == "seed":  # 2
        return bool(value < 0)
    return name == "stop" and not value  # 3


def to_openai_chat(payload: dict[str, Any]) -> TranslatedRequest:
    """Return a request to /api/chat as a chat.

    Raises:
        Invalid: A field is invalid; `param` names it.
    """
    check_messages(payload["messages"])
    body: dict[str, Any] = {"messages": to_openai_messages(payload["messages"])}
    if payload.get("tools"):
        body["tools"] = to_openai_tools(payload["tools"])
    fields, native, ignored = _common(payload)
    body |= fields | _logprobs(payload, Operation.CHAT)
    return TranslatedRequest(Operation.CHAT, body, ignored, _native(native, payload.get("think")))


def to_openai_generate(payload: dict[str, Any]) -> TranslatedRequest:
    """Return a request to /api/generate as a chat or a completion.

    1. raw                  → a completion: the prompt is sent as it is
    2. a suffix             → a completion that fills the gap
    3. `messages`           → a chat
    4. else                 → a chat: the system text, the messages in `context`, the prompt with its images

    Raises:
        Invalid: A field is invalid; `param` names it.
    """
    if payload.get("raw") and any(payload.get(name) for name in ("template", "system", "context")):
        raise Invalid("raw mode does not support template, system, or context", param="raw")
    if payload.get("template"):
        raise Invalid(
            "`template` is not supported: the engine applies the model's own. Leave it out, or send a "
            "complete prompt with `raw`.",
            param="template",
        )
    fields, native, ignored = _common(payload)
    if payload.get("raw") or payload.get("suffix"):  # 1, 2
        return _completion(payload, Sampling(fields, native, ignored))
    if payload.get("messages"):  # 3
        check_messages(payload["messages"])
        messages = to_openai_messages(payload["messages"])
    else:  # 4
        messages = unpack_context(payload["context"]) if payload.get("context") else []
        messages += to_openai_messages(
            [{"role": "user", "content": payload.get("prompt") or "", "images": payload.get("images")}],
            where="",
        )
    if payload.get("system"):
        messages = [
            {"role": "system", "content": payload["system"]},
            *(m for m in messages if m["role"] != "system"),
        ]
    return TranslatedRequest(
        Operation.CHAT,
        {"messages": messages, **fields, **_logprobs(payload, Operation.CHAT)},
        ignored,
        _native(native, payload.get("think")),
    )


def _native(values: dict[str, Any], think: bool | str | None) -> NativeOptions | None:
    if isinstance(think, str):
        think = EFFORTS[think]
    return NativeOptions(values, think) if values or think is not None else None


def _completion(payload: dict[str, Any], sampling: Sampling) -> TranslatedRequest:
    if payload.get("images"):
        raise Invalid(
            f"`images` cannot be used with `{'raw' if payload.get('raw') else 'suffix'}`.", param="images"
        )
    body: dict[str, Any] = {
        "prompt": payload.get("prompt") or "",
        "max_tokens": RAW_MAX_TOKENS,
        **sampling.fields,
    }
    if payload.get("suffix"):
        body["suffix"] = payload["suffix"]
    body.pop("reasoning_effort", None)
    # A gap has no conversation around it.
    ignored = sampling.ignored + [name for name in ("system", "context") if payload.get(name)]
    if payload.get("think"):  # the prompt is complete: no template is left that could ask for it
        ignored.append("think")
    body |= _logprobs(payload, Operation.COMPLETION)
    native = _native(sampling.native, None)
    if "max_tokens" not in sampling.fields:  # the model table may have a better one
        native = NativeOptions(sampling.native, assumed=frozenset({"max_tokens"}))
    return TranslatedRequest(Operation.COMPLETION, body, ignored, native)


def _common(payload: dict[str, Any]) -> Sampling:
    """Return the fields that both share: options, format, think. Also check keep_alive."""
    fields, native, ignored = to_openai_options(payload.get("options"))
    parse_keep_alive_s(payload.get("keep_alive"))
    fields |= _response_format(payload.get("format"))
    fields |= _reasoning_effort(payload.get("think"))
    return Sampling(fields, native, ignored)


def _response_format(wanted: Any) -> dict[str, Any]:
    if wanted in (None, ""):
        return {}
    if wanted == "json":
        return {"response_format": {"type": "json_object"}}
    if isinstance(wanted, dict):
        schema = {"name": "answer", "schema": wanted}
        return {"response_format": {"type": "json_schema", "json_schema": schema}}
    raise Invalid('`format` must be "json" or a JSON schema object.', param="format")


def _reasoning_effort(think: Any) -> dict[str, Any]:
    if think is None or isinstance(think, bool):
        return {}
    if not isinstance(think, str):
        raise Invalid(
            f"`think` must be true, false, or one of low, medium, high, max, not {json_type_of(think)}.",
            param="think",
        )
    if think not in EFFORTS:
        raise Invalid(
            f'invalid think value: "{think[:64]}" (must be "high", "medium", "low", "max", true, or false)',
            param="think",
        )
    return {"reasoning_effort": EFFORTS[think]}


def _logprobs(payload: dict[str, Any], operation: Operation) -> dict[str, Any]:
    """Return the fields for log-probabilities, which the two operations spell differently."""
    top = payload.get("top_logprobs") or 0
    if not 0 <= top <= MAX_TOP_LOGPROBS:
        raise Invalid("top_logprobs must be between 0 and 20", param="top_logprobs")
    if not payload.get("logprobs"):
        return {}
    return {"logprobs": top} if operation is Operation.COMPLETION else {"logprobs": True, "top_logprobs": top}
