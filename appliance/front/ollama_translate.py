"""Ollama's requests into OpenAI's, OpenAI's replies into Ollama's. Pure. Source: protocol facts of Ollama's API types."""

import base64
import binascii
import math
import re
from typing import Any

from appliance.base import jsons
from appliance.base.errors import Invalid
from appliance.front.body import check_messages, type_word

OPTIONS = {     # Ollama's option → (OpenAI's field, type)
    "temperature": ("temperature", float), "top_p": ("top_p", float), "top_k": ("top_k", int), "min_p": ("min_p", float),
    "seed": ("seed", int), "presence_penalty": ("presence_penalty", float), "frequency_penalty": ("frequency_penalty", float),
    "repeat_penalty": ("repetition_penalty", float), "num_predict": ("max_tokens", int), "max_tokens": ("max_tokens", int),
    "stop": ("stop", list),
}
LOCAL_OPTIONS = {   # meaningful to a local engine only; accepted and left out
    "num_ctx", "num_keep", "num_batch", "num_gpu", "main_gpu", "use_mmap", "num_thread", "typical_p", "repeat_last_n", "tfs_z",
    "mirostat", "mirostat_tau", "mirostat_eta", "penalize_newline", "numa", "low_vram", "vocab_only", "use_mlock",
}
EFFORTS = {"low", "medium", "high", "max"}
DONE_REASONS = {"tool_calls": "stop", "content_filter": "stop", "function_call": "stop"}
_DURATION = re.compile(r"(-?\d+(?:\.\d+)?)(ns|us|µs|ms|s|m|h)")
_UNIT_S = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_IMAGE_TYPES = ((b"\x89PNG", "image/png"), (b"\xff\xd8", "image/jpeg"), (b"GIF8", "image/gif"), (b"RIFF", "image/webp"))


def keep_alive_s(value: Any) -> float | None:
    """Read keep_alive: seconds as a number, or a Go duration; negative = for ever (inf), absent = None."""
    if value is None:
        return None
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return math.inf if value < 0 else float(value)
    if isinstance(value, str) and (value == "0" or _DURATION.fullmatch(value) or re.fullmatch(rf"(?:{_DURATION.pattern})+", value)):
        total = sum(float(n) * _UNIT_S[u] for n, u in _DURATION.findall(value))
        return math.inf if total < 0 or value.startswith("-") else total
    raise Invalid("`keep_alive` must be seconds as a number, or a duration such as \"5m\" or \"-1s\".", param="keep_alive")


def options_into(body: dict[str, Any], options: Any) -> list[str]:
    """Write `options` into an OpenAI body; give the names nobody knows (a warning, not an error, as in Ollama)."""
    if options is None:
        return []
    if not isinstance(options, dict):
        raise Invalid(f"`options` must be an object, not {type_word(options)}.", param="options")
    unknown = []
    for name, value in options.items():
        if name not in OPTIONS:
            unknown += [] if name in LOCAL_OPTIONS else [name]
            continue
        field, kind = OPTIONS[name]
        if value is None:
            continue
        if name == "stop" and isinstance(value, str):
            value = [value]
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not (isinstance(value, list) if kind is list else is_number and (kind is float or float(value).is_integer())):
            raise Invalid(f"option \"{name}\" must be of type {'array' if kind is list else 'integer' if kind is int else 'float32'}",
                          param=f"options.{name}")
        if name == "num_predict" and value < 0:
            continue        # -1: until it ends, -2: until the context is full; both are OpenAI's default
        body[field] = int(value) if kind is int else value
    return unknown


def common_into(body: dict[str, Any], ask: dict[str, Any]) -> list[str]:
    """Write what /api/chat and /api/generate share: options, format, think, log-probabilities; give unknown options."""
    unknown = options_into(body, ask.get("options"))
    keep_alive_s(ask.get("keep_alive"))
    wanted = ask.get("format")
    if wanted == "json":
        body["response_format"] = {"type": "json_object"}
    elif isinstance(wanted, dict):
        body["response_format"] = {"type": "json_schema", "json_schema": {"name": "answer", "schema": wanted}}
    elif wanted not in (None, ""):
        raise Invalid("`format` must be \"json\" or a JSON schema object.", param="format")
    think = ask.get("think")
    if isinstance(think, str):
        if think not in EFFORTS:
            raise Invalid(f"invalid think value: \"{think}\" (must be \"high\", \"medium\", \"low\", \"max\", true, or false)",
                          param="think")
        body["reasoning_effort"] = "high" if think == "max" else think
    elif think is not None and not isinstance(think, bool):
        raise Invalid("`think` must be true, false, or one of low, medium, high, max.", param="think")
    if ask.get("logprobs"):
        body["logprobs"] = True
        top = ask.get("top_logprobs", 0)
        if not isinstance(top, int) or not 0 <= top <= 20:
            raise Invalid("top_logprobs must be between 0 and 20", param="top_logprobs")
        body["top_logprobs"] = top
    return unknown


def chat_body(ask: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Give OpenAI's body for an /api/chat request, and the options nobody knows."""
    check_messages(ask.get("messages"))
    body: dict[str, Any] = {"messages": [_message(m, n) for n, m in enumerate(ask["messages"])]}
    if ask.get("tools"):
        if not isinstance(ask["tools"], list):
            raise Invalid(f"`tools` must be an array, not {type_word(ask['tools'])}.", param="tools")
        body["tools"] = ask["tools"]
    return body, common_into(body, ask)


def generate_body(ask: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Give OpenAI's chat body for an /api/generate request (system A's `messages` are taken too)."""
    if ask.get("raw") and any(ask.get(f) for f in ("template", "system", "context")):
        raise Invalid("raw mode does not support template, system, or context", param="raw")
    for name in ("prompt", "system", "suffix", "template"):
        if not isinstance(ask.get(name, ""), (str, type(None))):
            raise Invalid(f"`{name}` must be a string, not {type_word(ask[name])}.", param=name)
    if ask.get("suffix"):
        raise Invalid(f"\"{ask.get('model') or ''}\" does not support insert", param="suffix")
    if ask.get("messages"):
        check_messages(ask["messages"])
        messages = [_message(m, n) for n, m in enumerate(ask["messages"])]
    else:
        messages = [{"role": "system", "content": ask["system"]}] if ask.get("system") else []
        messages.append(_message({"role": "user", "content": ask.get("prompt") or "", "images": ask.get("images")}, 0))
    body: dict[str, Any] = {"messages": messages}
    return body, common_into(body, ask)


def _message(message: dict[str, Any], number: int) -> dict[str, Any]:
    """Translate one message: images become data URIs, tool arguments become text, names and ids stay."""
    out: dict[str, Any] = {"role": message["role"], "content": message.get("content") or ""}
    images = message.get("images")
    if images:
        if not isinstance(images, list):
            raise Invalid(f"`messages.{number}.images` must be an array of base64 texts.", param=f"messages.{number}.images")
        parts: list[dict[str, Any]] = [{"type": "text", "text": out["content"]}] if out["content"] else []
        parts += [{"type": "image_url", "image_url": {"url": _data_uri(i, f"messages.{number}.images.{k}")}} for k, i in enumerate(images)]
        out["content"] = parts
    if message.get("thinking"):
        out["reasoning_content"] = message["thinking"]
    if message.get("tool_calls"):
        out["tool_calls"] = [_call_up(call, number, k) for k, call in enumerate(message["tool_calls"])]
    if message["role"] == "tool":
        out["tool_call_id"] = message.get("tool_call_id") or f"call_{message.get('tool_name') or number}"
        if message.get("tool_name"):
            out["name"] = message["tool_name"]
    return out


def _call_up(call: Any, number: int, index: int) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise Invalid(f"`messages.{number}.tool_calls.{index}.function.name` is missing.", param=f"messages.{number}.tool_calls.{index}")
    arguments = function.get("arguments") or {}
    text = arguments if isinstance(arguments, str) else jsons.dumps_text(arguments)
    return {"id": call.get("id") or f"call_{function['name']}", "type": "function",
            "function": {"name": function["name"], "arguments": text}}


def _data_uri(image: Any, param: str) -> str:
    if isinstance(image, str) and image.startswith("data:"):
        return image
    try:
        head = base64.b64decode(image, validate=True)[:16] if isinstance(image, str) else b""
    except (binascii.Error, ValueError):
        head = b""
    if not head:
        raise Invalid(f"`{param}` is no base64 image.", param=param)
    kind = next((name for magic, name in _IMAGE_TYPES if head.startswith(magic)), "image/png")
    return f"data:{kind};base64,{image}"


def calls_down(calls: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Translate finished tool calls: arguments become an object."""
    out = []
    for index, call in enumerate(calls):
        function = call.get("function") or {}
        try:
            arguments = jsons.loads(function.get("arguments") or "{}")
        except jsons.BadJson:
            arguments = {"_raw": function.get("arguments")}
        row = {"function": {"index": index, "name": function.get("name", ""), "arguments": arguments}}
        out.append({"id": call["id"], **row} if call.get("id") else row)
    return out


class CallGatherer:
    """Puts the fragments of streamed tool calls together; Ollama sends each call whole."""

    def __init__(self) -> None:
        self._calls: dict[int, dict[str, Any]] = {}

    def add(self, fragments: Any) -> None:
        for fragment in fragments or []:
            call = self._calls.setdefault(fragment.get("index", 0), {"id": "", "function": {"name": "", "arguments": ""}})
            call["id"] = fragment.get("id") or call["id"]
            function = fragment.get("function") or {}
            call["function"]["name"] += function.get("name") or ""
            call["function"]["arguments"] += function.get("arguments") or ""

    def calls(self) -> list[dict[str, Any]]:
        return calls_down([self._calls[i] for i in sorted(self._calls)])


def thinking_of(message: dict[str, Any]) -> str:
    """Give the reasoning text under either of its names."""
    return str(message.get("reasoning_content") or message.get("reasoning") or "")


def done_reason(finish: Any) -> str:
    return DONE_REASONS.get(finish, finish or "stop")


def metrics_of(usage: Any, *, total_s: float, first_s: float) -> dict[str, int]:
    """Give the closing object's numbers, durations in nanoseconds; those that are zero are left out, as Ollama does."""
    usage = usage if isinstance(usage, dict) else {}
    numbers = {
        "total_duration": int(total_s * 1e9), "load_duration": 0,
        "prompt_eval_count": usage.get("prompt_tokens") or 0, "prompt_eval_duration": int(first_s * 1e9),
        "eval_count": usage.get("completion_tokens") or 0, "eval_duration": int(max(0.0, total_s - first_s) * 1e9),
    }
    return {name: value for name, value in numbers.items() if value}


def normalised(vector: list[float]) -> list[float]:
    """Give the vector with length 1 (a zero vector stays)."""
    length = math.sqrt(sum(x * x for x in vector))
    return [x / length for x in vector] if length else vector
