"""Chunks of a stream that are just as OpenAI's API has them, recognised in one pass over the bytes. Pure.

All others are read by relay.py with whole_reply.py, which know the shapes that engines send.
"""

from typing import Any

import msgspec
from msgspec import Struct

from appliance.base.jsons import read_typed


class _PlainDelta(Struct, forbid_unknown_fields=True):
    role: str | None = None
    content: str | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    thinking: str | None = None
    tool_calls: None = None
    function_call: None = None


class _PlainChunkChoice(Struct):
    delta: _PlainDelta | None = None
    text: str | None = None
    finish_reason: str | None = None
    index: int | None = None


class PlainChunk(Struct):
    """A chunk without anything unusual.

    Attributes:
        usage, timings: None = none.
    """

    choices: list[_PlainChunkChoice]
    usage: dict[str, Any] | None = None
    timings: dict[str, Any] | None = None
    object: str | None = None
    type: str | None = None
    error: None = None
    prompt_progress: None = None

    @property
    def is_text(self) -> bool:
        """Whether it holds nothing but a piece of text, or the beginning of one."""
        return len(self.choices) == 1 and not (
            self.usage or self.timings is not None or self.choices[0].finish_reason
        )

    @property
    def has_text(self) -> bool:
        """Whether it holds text, of whatever kind."""
        for choice in self.choices:
            if choice.text:
                return True
            delta = choice.delta
            if delta is not None and (
                delta.content or delta.reasoning_content or delta.reasoning or delta.thinking or delta.refusal
            ):
                return True
        return False


_decode = msgspec.json.Decoder(PlainChunk).decode


def read_plain_chunk(data: bytes) -> PlainChunk | None:
    """Return a chunk that needs no repair and reports no error; None = it has to be looked at."""
    chunk = read_typed(_decode, data)
    if chunk is None or chunk.object == "error" or chunk.type == "error":
        return None
    for choice in chunk.choices:
        if choice.finish_reason == "error":
            return None
    return chunk
