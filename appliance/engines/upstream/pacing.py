"""One whole answer turned into a stream: OpenAI-shaped chunks, the text cut at user-perceived characters. Pure but for `paced`.

Source: system A, "Simulated SSE" (piece size STREAM_CHUNK_SIZE, pause STREAM_DELAY_MS), made complete: newlines, emoji,
several choices, tool calls, reasoning text, log-probabilities, usage.
"""

import asyncio
from collections.abc import AsyncGenerator, Iterator
from typing import Any

import regex

from appliance.base import jsons

_CHARACTER = regex.compile(r"\X")


def pieces_of(text: str, size: int) -> list[str]:
    """Cut `text` into pieces of `size` user-perceived characters (extended grapheme clusters); nothing is lost."""
    if text.isascii() and "\r" not in text:
        return [text[i : i + size] for i in range(0, len(text), size)]
    characters = _CHARACTER.findall(text)
    return ["".join(characters[i : i + size]) for i in range(0, len(characters), size)]


def chunks_of(reply: dict[str, Any], *, size: int, include_usage: bool) -> Iterator[dict[str, Any]]:
    """Give the chunks of a stream that says the same as `reply`.

    Takes   reply: a `chat.completion` or `text_completion` object; size: characters per piece
    Gives   chunk objects; per choice: role, reasoning, text, tool calls, finish_reason; then usage if asked for
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

    known = {"role", "content", "refusal", "tool_calls", "reasoning_content", "reasoning"}
    rest = {k: v for k, v in message.items() if k not in known and v is not None}
    yield part(
        {
            "role": message.get("role") or "assistant",
            "content": "" if message.get("content") is not None else None,
            **rest,
        }
    )
    for name in ("reasoning_content", "reasoning", "refusal"):
        if isinstance(message.get(name), str):
            for text in pieces_of(message[name], size):
                yield part({name: text})
    content = message.get("content")
    if isinstance(content, str):
        texts = pieces_of(content, size)
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
    texts = pieces_of(choice.get("text") or "", size)
    for number, text in enumerate(texts):
        logprobs = choice.get("logprobs") if number == 0 else None
        yield {"index": index, "text": text, "logprobs": logprobs, "finish_reason": None}
    yield {"index": index, "text": "", "logprobs": None, "finish_reason": choice.get("finish_reason")}


def _shares(logprobs: Any, texts: list[str]) -> list[Any]:
    """Give each piece the log-probabilities of the tokens that begin in it; the last piece takes the rest."""
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


async def paced(
    reply: dict[str, Any], *, size: int, delay_ms: float, include_usage: bool
) -> AsyncGenerator[bytes, None]:
    """Send `reply` as a stream of `data: {json}\\n\\n` pieces with `delay_ms` between them, then `data: [DONE]\\n\\n`."""
    is_first = True
    for chunk in chunks_of(reply, size=size, include_usage=include_usage):
        if delay_ms and not is_first:
            await asyncio.sleep(delay_ms / 1000)
        is_first = False
        yield b"data: " + jsons.dumps(chunk) + b"\n\n"
    yield b"data: [DONE]\n\n"
