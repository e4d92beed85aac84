"""OpenAI's replies and chunks as Ollama's objects: text, thinking, whole tool calls, numbers. Pure.

Source: Ollama's API types.
"""

import base64
import binascii
import math
import struct
from dataclasses import dataclass, field
from typing import Any

from appliance.base.clock import format_rfc3339
from appliance.base.errors import UpstreamFailed
from appliance.engines.upstream.reply_text import (
    read_choices,
    read_content,
    read_finish,
    read_message,
    read_reasoning,
    read_refusal,
)
from appliance.engines.upstream.token_counts import read_count
from appliance.engines.upstream.tool_calls import ToolCalls, parse_arguments, read_calls

MAX_TIME_MS = 1e11  # three years; more is no time
# By OpenAI's finish_reason; any other one is passed on unchanged.
DONE_REASONS = {"tool_calls": "stop", "function_call": "stop"}


@dataclass(frozen=True, slots=True)
class ReplyFormat:
    """How the reply to one request is rendered: model name, chat's or generate's shape, thinking or not."""

    model: str
    is_chat: bool
    shows_thinking: bool = True

    def part(
        self,
        at_s: float,
        text: str = "",
        *,
        thinking: str = "",
        calls: list[dict[str, Any]] | None = None,
        logprobs: list[Any] | None = None,
    ) -> dict[str, Any]:
        """Return an object without its `done`."""
        content: dict[str, Any] = (
            {"role": "assistant", "content": text} if self.is_chat else {"response": text}
        )
        if thinking and self.shows_thinking:
            content["thinking"] = thinking
        if calls:
            content["tool_calls"] = calls
        out: dict[str, Any] = {"model": self.model, "created_at": format_rfc3339(at_s)}
        out |= {"message": content} if self.is_chat else content
        return out | ({"logprobs": logprobs} if logprobs else {})


@dataclass(slots=True)
class StreamTranslator:
    """Turns the chunks of one stream into Ollama's objects. After the last chunk call `finish`.

    Tool calls are assembled and sent whole, in one object before the closing one. `text` is the whole text so
    far.
    """

    reply_format: ReplyFormat
    text: str = ""
    _calls: ToolCalls = field(default_factory=ToolCalls)
    _usage: Any = None
    _timings: Any = None
    _finish: Any = None
    _first_s: float | None = None

    def translate(self, event: dict[str, Any], *, at_s: float, elapsed_s: float) -> dict[str, Any] | None:
        """Return a chunk as an object; None where it has neither text nor thinking.

        Args:
            event: One chunk of OpenAI's.
            at_s: Seconds since 1970.
            elapsed_s: Seconds since the request arrived.
        """
        self._usage = event.get("usage") or self._usage
        self._timings = event.get("timings") or self._timings
        choices = read_choices(event)
        if not choices:
            return None
        choice = choices[0]
        # a completion's chunk has `text` in the choice itself
        delta = read_message(choice, "delta") or choice
        self._finish = read_finish(choice) or self._finish
        self._calls.add(delta.get("tool_calls"))
        if delta.get("function_call") is not None:
            self._calls.add([{"function": delta["function_call"]}])
        text, reasoning = read_content(delta) or read_refusal(delta), read_reasoning(delta)
        thinking = reasoning if self.reply_format.shows_thinking else ""
        if self._first_s is None and (text or self._calls.calls or reasoning):
            self._first_s = elapsed_s
        if not text and not thinking:
            return None
        self.text += text
        return self.reply_format.part(
            at_s, text, thinking=thinking, logprobs=from_openai_logprobs(choice)
        ) | {"done": False}

    def finish(self, *, at_s: float, elapsed_s: float, load_s: float = 0.0) -> list[dict[str, Any]]:
        """Return the last objects: the tool calls, if there are any, and the closing one with the numbers.

        Args:
            at_s: Seconds since 1970.
            elapsed_s: Seconds since the request arrived.
            load_s: Seconds of them in which its model was loaded.
        """
        calls = from_openai_calls([call.render() for call in self._calls.calls])
        parts = [self.reply_format.part(at_s, calls=calls) | {"done": False}] if calls else []
        last = self.reply_format.part(at_s) | {"done": True, "done_reason": to_done_reason(self._finish)}
        first_s = 0.0 if self._first_s is None else self._first_s
        numbers = closing_numbers(
            self._usage, total_s=elapsed_s, first_s=first_s, timings=self._timings, load_s=load_s
        )
        return [*parts, last | numbers]


def from_openai_reply(
    reply: dict[str, Any], reply_format: ReplyFormat, *, at_s: float, elapsed_s: float, load_s: float = 0.0
) -> tuple[dict[str, Any], str]:
    """Return a whole reply as an object; the times are those of `StreamTranslator.finish`.

    Returns:
        (the object, its text).

    Raises:
        UpstreamFailed: It has no choices.
    """
    choices = reply.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise UpstreamFailed("The engine's response has no `choices`.", code="upstream_rubbish")
    choice = choices[0]
    message = read_message(choice, "message") or choice  # a completion has `text` in the choice itself
    text = read_content(message) or read_refusal(message)
    out = reply_format.part(
        at_s,
        text,
        thinking=read_reasoning(message),
        calls=from_openai_calls(read_calls(message)),
        logprobs=from_openai_logprobs(choice),
    )
    out |= {"done": True, "done_reason": to_done_reason(choice.get("finish_reason"))}
    numbers = closing_numbers(
        reply.get("usage"), total_s=elapsed_s, first_s=0.0, timings=reply.get("timings"), load_s=load_s
    )
    return out | numbers, text


def from_openai_calls(calls: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Translate finished tool calls: arguments become an object, ids stay."""
    out = []
    for index, call in enumerate(calls):
        function = call.get("function") or {}
        row = {
            "function": {
                "index": index,
                "name": function.get("name") or "",
                "arguments": parse_arguments(function.get("arguments")),
            }
        }
        out.append({"id": call["id"], **row} if call.get("id") else row)
    return out


def to_done_reason(finish: Any) -> str:
    """Return Ollama's done_reason for a finish_reason."""
    return DONE_REASONS.get(finish, finish) if isinstance(finish, str) and finish else "stop"


def from_openai_logprobs(choice: dict[str, Any]) -> list[Any]:
    """Return Ollama's log-probabilities, from a chat's (`content`) or a completion's (parallel arrays)."""
    given = choice.get("logprobs")
    if not isinstance(given, dict):
        return []
    if isinstance(given.get("content"), list):
        return list(given["content"])
    tokens, numbers = given.get("tokens") or [], given.get("token_logprobs") or []
    tops = given.get("top_logprobs") or [None] * len(tokens)
    rows: list[Any] = []
    for token, number, top in zip(tokens, numbers, tops, strict=False):
        row = {"token": token, "logprob": 0.0 if number is None else number}
        rows.append(
            row | ({"top_logprobs": [{"token": t, "logprob": p} for t, p in top.items()]} if top else {})
        )
    return rows


def closing_numbers(
    usage: Any, *, total_s: float, first_s: float, timings: Any = None, load_s: float = 0.0
) -> dict[str, int]:
    """Return the closing object's numbers, durations in nanoseconds; zeros are left out, as Ollama does.

    Args:
        usage: OpenAI's.
        total_s: Seconds from the request to its end.
        first_s: Seconds to the first token; 0 = unknown (a whole reply).
        timings: llama-server's own measurements, which are more exact; None = none.
        load_s: Seconds in which the model was loaded for the request; they count for neither phase.
    """
    usage = usage if isinstance(usage, dict) else {}
    prompt_s, eval_s = max(0.0, first_s - load_s), max(0.0, total_s - max(first_s, load_s))
    if isinstance(timings, dict):
        prompt_s, eval_s = _ms(timings.get("prompt_ms"), prompt_s), _ms(timings.get("predicted_ms"), eval_s)
    numbers = {
        "total_duration": nanoseconds(total_s),
        "load_duration": nanoseconds(load_s),
        "prompt_eval_count": read_count(usage.get("prompt_tokens")),
        "prompt_eval_duration": nanoseconds(prompt_s),
        "eval_count": read_count(usage.get("completion_tokens")),
        "eval_duration": nanoseconds(eval_s),
    }
    return {name: value for name, value in numbers.items() if value}


def _ms(value: Any, otherwise_s: float) -> float:
    """Return milliseconds that an engine measured as seconds; anything that is no duration is left out."""
    is_time = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < MAX_TIME_MS
    return value / 1000 if is_time else otherwise_s


def nanoseconds(seconds: float) -> int:
    """Return seconds as whole nanoseconds."""
    return round(seconds * 1e9)


def parse_vectors(reply: dict[str, Any], count: int) -> list[list[float]]:
    """Return `count` embeddings, in the order of their inputs.

    Each is numbers, or base64 of little-endian 32-bit floats.

    Raises:
        UpstreamFailed: There are more or fewer, or one is invalid.
    """
    rows = reply.get("data")
    if not isinstance(rows, list) or len(rows) != count:
        found = len(rows) if isinstance(rows, list) else "no"
        raise UpstreamFailed(
            f"The engine returned {found} embeddings for {count} texts.",
            code="upstream_rubbish",
        )
    try:
        return [_vector(row["embedding"]) for row in sorted(rows, key=lambda row: row.get("index", 0))]
    except (KeyError, TypeError, ValueError, AttributeError, struct.error, binascii.Error) as exc:
        raise UpstreamFailed(
            f"The engine's embeddings are invalid: {exc!r}.", code="upstream_rubbish"
        ) from exc


def _vector(given: Any) -> list[float]:
    if isinstance(given, str):
        data = base64.b64decode(given, validate=True)
        return list(struct.unpack(f"<{len(data) // 4}f", data))
    return [float(x) for x in given]


def normalize(vector: list[float]) -> list[float]:
    """Return the vector scaled to length 1; a zero vector stays."""
    length = math.sqrt(sum(x * x for x in vector))
    return [x / length for x in vector] if length else vector
