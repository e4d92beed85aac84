"""Cuts a whole response into a stream: OpenAI's chunks, the text cut at user-perceived characters.

Pure but for `pace_response`. Source: docs/compatibility.md, simulated streams (pieces of STREAM_CHUNK_SIZE, a
pause of STREAM_DELAY_MS), extended to line breaks, emoji, several choices, tool calls, reasoning,
log-probabilities and usage.
"""

import asyncio
from collections.abc import AsyncGenerator, Iterator
from typing import Any

from appliance.base import jsons
from appliance.engines.upstream.reply_text import REASONING_NAMES


def cut_text(text: str, size: int) -> list[str]:
    """Cut a text into pieces of `size` user-perceived characters (extended grapheme clusters)."""
    if text.isascii() and "\r" not in text:
        return [text[i : i + size] for i in range(0, len(text), size)]
    import regex  # needed for other texts than ASCII alone, and 1.3 MB

    characters = regex.findall(r"\X", text)
    return ["".join(characters[i : i + size]) for i in range(0, len(characters), size)]


def make_chunks(reply: dict[str, Any], *, size: int, include_usage: bool) -> Iterator[dict[str, Any]]:
    """Yield the chunks of a stream with the content of `reply`.

    Args:
        reply: A `chat.completion` or `text_completion` object.
        size: Characters per piece.
        include_usage: The client asked for the usage.

    Returns:
        Chunk objects. Per choice: role, reasoning, text, tool calls, finish_reason; at the end the usage.
    """
    is_chat = reply.get("object") != "text_completion"
    head = {k: v for k, v in reply.items() if k not in {"choices", "usage", "object"}}
    head["object"] = "chat.completion.chunk" if is_chat else "text_completion"
    if include_usage:
        head["usage"] = None
    for choice in reply.get("choices") or []:
        for part in _chat_parts(choice, size) if is_chat else _text_parts(choice, size):
            yield {**head, "choices": [part]}
    if include_usage:
        yield {**head, "choices": [], "usage": reply.get("usage")}


def _chat_parts(choice: dict[str, Any], size: int) -> Iterator[dict[str, Any]]:
    index = choice.get("index", 0)
    message = choice.get("message") or {}

    def part(delta: dict[str, Any], logprobs: Any = None, finish: Any = None) -> dict[str, Any]:
        return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}

    known = {"role", "content", "refusal", "tool_calls", *REASONING_NAMES}
    rest = {k: v for k, v in message.items() if k not in known and v is not None}
    yield part(
        {
            "role": message.get("role") or "assistant",
            "content": "" if message.get("content") is not None else None,
            **rest,
        }
    )
    for name in (*REASONING_NAMES, "refusal"):
        if isinstance(message.get(name), str):
            for text in cut_text(message[name], size):
                yield part({name: text})
    content = message.get("content")
    if isinstance(content, str):
        texts = cut_text(content, size)
        for text, logprobs in zip(texts, _shares(choice.get("logprobs"), texts), strict=True):
            yield part({"content": text}, logprobs)
    for number, call in enumerate(message.get("tool_calls") or []):
        function = call.get("function") or {}
        first = {**call, "index": number, "function": {**function, "arguments": ""}}
        yield part({"tool_calls": [first]})
        if function.get("arguments"):
            yield part({"tool_calls": [{"index": number, "function": {"arguments": function["arguments"]}}]})
    yield part({}, finish=choice.get("finish_reason"))


def _text_parts(choice: dict[str, Any], size: int) -> Iterator[dict[str, Any]]:
    index = choice.get("index", 0)
    texts = cut_text(choice.get("text") or "", size)
    for number, text in enumerate(texts):
        logprobs = choice.get("logprobs") if number == 0 else None
        yield {"index": index, "text": text, "logprobs": logprobs, "finish_reason": None}
    yield {"index": index, "text": "", "logprobs": None, "finish_reason": choice.get("finish_reason")}


def _shares(logprobs: Any, texts: list[str]) -> list[Any]:
    """Return each piece's log-probabilities: of the tokens that begin in it; the last one takes the rest."""
    shares: list[Any] = [None] * len(texts)
    tokens = logprobs.get("content") if isinstance(logprobs, dict) else None
    if not tokens or not texts:
        return shares
    piece, end, at = 0, len(texts[0]), 0
    for token in tokens:
        while at >= end and piece < len(texts) - 1:
            piece += 1
            end += len(texts[piece])
        shares[piece] = shares[piece] or {**logprobs, "content": []}
        shares[piece]["content"].append(token)
        at += len(token.get("token") or "")
    return shares


async def pace_response(
    reply: dict[str, Any], *, size: int, delay_ms: float, include_usage: bool
) -> AsyncGenerator[bytes, None]:
    r"""Yield a response as a stream.

    Args:
        reply: A `chat.completion` or `text_completion` object.
        size: Characters per piece.
        delay_ms: Pause between two pieces, milliseconds.
        include_usage: The client asked for the usage.

    Returns:
        Pieces `data: {json}\n\n`, the last one `data: [DONE]\n\n`.
    """
    is_first = True
    for chunk in make_chunks(reply, size=size, include_usage=include_usage):
        if delay_ms and not is_first:
            await asyncio.sleep(delay_ms / 1000)
        is_first = False
        yield b"data: " + jsons.dumps(chunk) + b"\n\n"
    yield b"data: [DONE]\n\n"
