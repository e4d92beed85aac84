"""What the demo engine says, and what a prompt can provoke. Pure.

The prompts (see docs/demo-engine.md), anywhere in the last user message:
  demo: error 429      answer with that status          demo: slow 2       wait so many seconds first
  demo: stall          fall silent in the stream        demo: cut          break the stream off
  demo: long 500       that many words                  demo: think        reasoning text before the answer
  demo: tool NAME      call that tool                   demo: unicode      newlines, emoji, joined characters
"""

import hashlib
import math
import re
from dataclasses import dataclass
from typing import Any

from appliance.base import jsons

MARK = "[demo engine]"
_COMMAND = re.compile(
    r"demo:\s*(error|slow|stall|cut|long|think|tool|unicode)\b[ \t]*([^\s]*)", re.IGNORECASE
)
_TOKEN = re.compile(r"\w{1,4}|[^\w\s]|\s+")
UNICODE = "First line.\nSecond line.\n\n👩‍👩‍👧‍👦 family, 🇪🇺 flag, e\u0301 accent, ไทย, 日本語.\n"
WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "the", "lazy", "dog"]
DIMENSIONS = 64


@dataclass(frozen=True, slots=True)
class ScriptPart:
    """What is to happen: a text, perhaps tool calls, perhaps trouble."""

    text: str
    reasoning: str = ""
    tools: tuple[tuple[str, str], ...] = ()  # (name, arguments as JSON text)
    error_status: int = 0
    slow_s: float = 0.0
    is_stalling: bool = False
    is_cut: bool = False
    finish: str = "stop"


def tokens_of(text: str) -> int:
    """Count tokens by a simple rule: up to four letters, one other sign, or a run of blanks make one."""
    return sum(1 for piece in _TOKEN.findall(text) if not piece.isspace())


def cut_tokens(text: str, most: int) -> str:
    """Give the beginning of `text` that has `most` tokens."""
    count = 0
    for match in _TOKEN.finditer(text):
        if not match.group().isspace():
            count += 1
        if count > most:
            return text[: match.start()].rstrip()
    return text


def last_user_text(messages: list[Any]) -> str:
    """Give the text of the last user message; parts are joined, other media named."""
    for message in reversed(messages):
        if isinstance(message, dict) and message.get("role") == "user":
            return content_text(message.get("content"))
    return content_text(messages[-1].get("content")) if messages and isinstance(messages[-1], dict) else ""


def content_text(content: Any) -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return " ".join(
            str(p.get("text", f"[{p.get('type', 'part')}]")) if isinstance(p, dict) else str(p)
            for p in content
        )
    return ""


def play(body: dict[str, Any], text: str, *, is_chat: bool) -> ScriptPart:
    """Decide the reply to `text`.

    1. an error is asked for         → that status
    2. a tool is forced or asked for → a call that fits its schema
    3. JSON is wanted                → an object that fits
    4. else                          → an echo; then `stop` and the token limit are applied
    """
    commands = {m[1].lower(): m[2] for m in _COMMAND.finditer(text)}
    slow_s = min(_number(commands.get("slow", "0")), 60.0)
    trouble = {"slow_s": slow_s, "is_stalling": "stall" in commands, "is_cut": "cut" in commands}
    if "error" in commands:  # 1
        status = int(_number(commands["error"]) or 500)
        return ScriptPart("", error_status=status if 400 <= status <= 599 else 500, slow_s=slow_s)
    tools = [
        t["function"]
        for t in body.get("tools") or []
        if isinstance(t, dict) and isinstance(t.get("function"), dict)
    ]
    called = _called_tools(body, tools, commands) if is_chat else []
    if called:  # 2
        calls = tuple(
            (str(f.get("name", "")), jsons.dumps_text(fitting(f.get("parameters") or {}))) for f in called
        )
        return ScriptPart("", tools=calls, finish="tool_calls", **trouble)  # type: ignore[arg-type]
    wanted = body.get("response_format")
    if isinstance(wanted, dict) and wanted.get("type") == "json_schema":  # 3
        reply = jsons.dumps_text(fitting((wanted.get("json_schema") or {}).get("schema") or {}))
    elif isinstance(wanted, dict) and wanted.get("type") == "json_object":
        reply = jsons.dumps_text({"engine": "demo", "echo": text})
    elif "long" in commands:  # 4
        count = min(int(_number(commands["long"]) or 100), 100_000)
        reply = f"{MARK} " + " ".join(WORDS[i % len(WORDS)] for i in range(count))
    elif "unicode" in commands:
        reply = f"{MARK} {UNICODE}"
    else:
        reply = f"{MARK} You said: {text}"
    reasoning = (
        f"{MARK} thinking about: {text}" if "think" in commands or body.get("reasoning_effort") else ""
    )
    reply, finish = _limited(reply, body)
    return ScriptPart(reply, reasoning=reasoning, finish=finish, **trouble)  # type: ignore[arg-type]


def _limited(reply: str, body: dict[str, Any]) -> tuple[str, str]:
    stops = body.get("stop") or []
    for stop in [stops] if isinstance(stops, str) else stops:
        if isinstance(stop, str) and stop and stop in reply:
            reply = reply[: reply.index(stop)]
    most = body.get("max_completion_tokens") or body.get("max_tokens")
    if isinstance(most, int) and most > 0 and tokens_of(reply) > most:
        return cut_tokens(reply, most), "length"
    return reply, "stop"


def _called_tools(
    body: dict[str, Any], tools: list[dict[str, Any]], commands: dict[str, str]
) -> list[dict[str, Any]]:
    choice = body.get("tool_choice")
    if not tools or choice == "none":
        return []
    if isinstance(choice, dict):
        name = (choice.get("function") or {}).get("name")
        return [t for t in tools if t.get("name") == name]
    if "tool" in commands:
        return [t for t in tools if t.get("name") == commands["tool"]] or tools[:1]
    return tools[:1] if choice == "required" else []


def fitting(schema: Any, depth: int = 0) -> Any:
    """Give a small value that fits a JSON schema: the first allowed value, the smallest number, every property."""
    if not isinstance(schema, dict) or depth > 8:
        return {}
    if "const" in schema:
        return schema["const"]
    if schema.get("enum"):
        return schema["enum"][0]
    for word in ("anyOf", "oneOf"):
        if schema.get(word):
            return fitting(schema[word][0], depth + 1)
    kind = schema.get("type", "object" if "properties" in schema or depth == 0 else "string")
    kind = kind[0] if isinstance(kind, list) and kind else kind
    if kind == "object":
        return {name: fitting(sub, depth + 1) for name, sub in (schema.get("properties") or {}).items()}
    if kind == "array":
        return [
            fitting(schema.get("items") or {"type": "string"}, depth + 1)
            for _ in range(max(1, schema.get("minItems") or 1))
        ]
    if kind in {"integer", "number"}:
        return schema.get("minimum", 1)
    return (
        {"boolean": True, "null": None}.get(kind, "demo")
        if kind != "string"
        else "demo".ljust(schema.get("minLength") or 0, "o")
    )


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0


def vector_of(text: str, dimensions: int) -> list[float]:
    """Give a unit vector from hashed words and letter triples: the same for the same text, near for similar ones."""
    vector = [0.0] * dimensions
    plain = f" {text.lower()} "
    for feature in [*re.findall(r"\w+", plain), *(plain[i : i + 3] for i in range(len(plain) - 2))]:
        digest = hashlib.blake2b(feature.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        vector[int.from_bytes(digest[:4], "little") % dimensions] += 1.0 if digest[4] & 1 else -1.0
    length = math.sqrt(sum(x * x for x in vector))
    return [x / length for x in vector] if length else [1.0, *[0.0] * (dimensions - 1)]
