"""What the demo engine replies to a prompt, and the commands in it. Pure.

Commands (see docs/demo-engine.md), anywhere in the last user message:
  demo: error 429      reply with that status           demo: slow 2       wait so many seconds first
  demo: stall          send nothing more in the stream  demo: cut          cut the stream off
  demo: long 500       that many words                  demo: think        reasoning text before the reply
  demo: tool NAME      call that tool                   demo: unicode      newlines, emoji, joined characters
"""

import hashlib
import math
import re
from dataclasses import dataclass
from typing import Any

from appliance.base import jsons
from appliance.base.errors import Invalid
from appliance.engines.backends.demo_schema import make_example

MARK = "[demo engine]"
_COMMAND = re.compile(
    r"demo:\s*(error|slow|stall|cut|long|think|tool|unicode)\b[ \t]*([^\s]*)", re.IGNORECASE
)
_TOKEN = re.compile(r"\w{1,4}|[^\w\s]|\s+")
UNICODE = "First line.\nSecond line.\n\n👩‍👩‍👧‍👦 family, 🇪🇺 flag, e\u0301 accent, ไทย, 日本語.\n"
WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "the", "lazy", "dog"]
DIMENSIONS = 64
MAX_WORDS = 100_000
MAX_DELAY_S = 60.0
SCHEMA_KEYWORDS: dict[str, Any] = {
    "type": (str, list),
    "properties": dict,
    "required": list,
    "enum": list,
    "allOf": list,
    "anyOf": list,
    "oneOf": list,
    "$ref": str,
}


@dataclass(frozen=True, slots=True)
class ScriptedReply:
    """What the demo engine does: reply with a text or tool calls, with an error, or with a faulty stream.

    Attributes:
        tool_calls: (name, arguments as JSON text).
        error_status: 0 = no error.
    """

    text: str = ""
    reasoning: str = ""
    tool_calls: tuple[tuple[str, str], ...] = ()
    error_status: int = 0
    delay_s: float = 0.0
    is_stalled: bool = False
    is_cut: bool = False
    finish_reason: str = "stop"


def count_tokens(text: str) -> int:
    """Count tokens by a simple rule: up to four letters, or one other character, are one; spaces are none."""
    return sum(1 for piece in _TOKEN.findall(text) if not piece.isspace())


def truncate(text: str, max_tokens: int) -> str:
    """Return the first `max_tokens` tokens of `text`."""
    count = 0
    for match in _TOKEN.finditer(text):
        if not match.group().isspace():
            count += 1
        if count > max_tokens:
            return text[: match.start()].rstrip()
    return text


def last_user_text(messages: list[Any]) -> str:
    """Return the text of the last user message, else of the last one; parts are joined, other media named."""
    for message in reversed(messages):
        if isinstance(message, dict) and message.get("role") == "user":
            return _content_text(message.get("content"))
    last = messages[-1] if messages else None
    return _content_text(last.get("content")) if isinstance(last, dict) else ""


def decide_reply(body: dict[str, Any], text: str, *, is_chat: bool) -> ScriptedReply:
    """Decide the reply to `text`.

    1. an error is asked for             → that status
    2. a tool is forced or asked for,
       and has not returned yet          → a call that fits its schema
    3. otherwise                         → a text, ended by `stop` and the token limit
    """
    commands = {match[1].lower(): match[2] for match in _COMMAND.finditer(text)}
    delay_s = min(_number(commands.get("slow", "0")), MAX_DELAY_S)
    if "error" in commands:  # 1
        status = int(_number(commands["error"]) or 500)
        return ScriptedReply(error_status=status if 400 <= status <= 599 else 500, delay_s=delay_s)
    is_stalled, is_cut = "stall" in commands, "cut" in commands
    results = _tool_results(body) if is_chat else []
    if is_chat and not results and (called := _called_tools(body, commands)):  # 2
        return ScriptedReply(
            tool_calls=tuple(map(_call, called)),
            finish_reason="tool_calls",
            delay_s=delay_s,
            is_stalled=is_stalled,
            is_cut=is_cut,
        )
    reply, finish_reason = _apply_limits(_text_of(body, text, commands, results), body)  # 3
    thinks = "think" in commands or body.get("reasoning_effort")
    return ScriptedReply(
        reply,
        reasoning=f"{MARK} thinking about: {text}" if thinks else "",
        finish_reason=finish_reason,
        delay_s=delay_s,
        is_stalled=is_stalled,
        is_cut=is_cut,
    )


def _tool_results(body: dict[str, Any]) -> list[str]:
    """Return what the tools returned that were called since the last user message; [] = none was called."""
    results = []
    for message in reversed(body.get("messages") or []):
        if not isinstance(message, dict) or message.get("role") == "user":
            break
        if message.get("role") in {"tool", "function"}:
            results.append(_content_text(message.get("content")))
    return results[::-1]


def _text_of(body: dict[str, Any], text: str, commands: dict[str, str], results: list[str]) -> str:
    """Return the whole text of a reply.

    1. JSON is wanted, with a schema    → a value that fits it
    2. JSON is wanted                   → an object with the prompt
    3. `demo: long`, `demo: unicode`    → such a text
    4. tools have returned              → what they returned
    5. otherwise                        → an echo
    """
    wanted = body.get("response_format")
    if not isinstance(wanted, dict):
        wanted = {}
    form = wanted.get("type")
    if form == "json_schema":  # 1
        return _example_of(_wanted_schema(wanted), "response_format.json_schema.schema")
    if form == "json_object":  # 2
        return jsons.dumps_text({"engine": "demo", "echo": text})
    if "long" in commands:  # 3
        count = min(int(_number(commands["long"]) or 100), MAX_WORDS)
        return f"{MARK} " + " ".join(WORDS[number % len(WORDS)] for number in range(count))
    if "unicode" in commands:
        return f"{MARK} {UNICODE}"
    if results:  # 4
        return f"{MARK} The tool returned: {', '.join(results)}"
    return f"{MARK} You said: {text}"  # 5


def _apply_limits(reply: str, body: dict[str, Any]) -> tuple[str, str]:
    """Apply `stop` and the token limit; return (text, finish_reason)."""
    stops = body.get("stop") or []
    for stop in [stops] if isinstance(stops, str) else stops:
        if isinstance(stop, str) and stop and stop in reply:
            reply = reply[: reply.index(stop)]
    most = body.get("max_completion_tokens") or body.get("max_tokens")
    if isinstance(most, int) and most > 0 and count_tokens(reply) > most:
        return truncate(reply, most), "length"
    return reply, "stop"


def _called_tools(body: dict[str, Any], commands: dict[str, str]) -> list[dict[str, Any]]:
    """Return the functions to call.

    1. there are none, or none is wanted  → none
    2. one is forced by name              → that one
    3. one is asked for in the prompt     → that one, else the first
    4. any is forced                      → the first; otherwise none
    """
    rows = [row for row in body.get("tools") or [] if isinstance(row, dict)]
    tools = [row["function"] for row in rows if isinstance(row.get("function"), dict)]
    choice = body.get("tool_choice")
    if not tools or choice == "none":  # 1
        return []
    if isinstance(choice, dict):  # 2
        name = (choice.get("function") or {}).get("name")
        return [tool for tool in tools if tool.get("name") == name]
    if "tool" in commands:  # 3
        return [tool for tool in tools if tool.get("name") == commands["tool"]] or tools[:1]
    return tools[:1] if choice == "required" else []  # 4


def _call(function: dict[str, Any]) -> tuple[str, str]:
    return str(function.get("name", "")), _example_of(function.get("parameters") or {}, "tools")


def _wanted_schema(response_format: dict[str, Any]) -> Any:
    form = response_format.get("json_schema") or {}
    if not isinstance(form, dict):
        raise Invalid(
            "`response_format.json_schema` must be an object with `name` and `schema`.",
            param="response_format.json_schema",
            code="invalid_type",
        )
    return form.get("schema") or {}


def _example_of(schema: Any, param: str) -> str:
    """Return a value that fits a schema, as JSON.

    Raises:
        Invalid: It is not a JSON schema; `param` names it.
    """
    is_valid = isinstance(schema, dict) and all(
        isinstance(schema[name], kinds) for name, kinds in SCHEMA_KEYWORDS.items() if name in schema
    )
    try:
        if is_valid:
            return jsons.dumps_text(make_example(schema))
    except (TypeError, AttributeError, KeyError, ValueError):  # a keyword further down
        pass
    raise Invalid(
        f"`{param}` is not a valid JSON schema: it, or a keyword in it, has a wrong type.",
        param=param,
        code="invalid_json_schema",
    )


def embed(text: str, dimensions: int) -> list[float]:
    """Return a unit vector of hashed words and letter triples: near for texts that are similar."""
    vector = [0.0] * dimensions
    plain = f" {text.lower()} "
    for feature in [*re.findall(r"\w+", plain), *(plain[i : i + 3] for i in range(len(plain) - 2))]:
        digest = hashlib.blake2b(feature.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        vector[int.from_bytes(digest[:4], "little") % dimensions] += 1.0 if digest[4] & 1 else -1.0
    length = math.sqrt(sum(x * x for x in vector))
    return [x / length for x in vector] if length else [1.0, *[0.0] * (dimensions - 1)]


def _content_text(content: Any) -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return " ".join(map(_part_text, content))
    return ""


def _part_text(part: Any) -> str:
    return str(part.get("text", f"[{part.get('type', 'part')}]")) if isinstance(part, dict) else str(part)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0
