"""Chats whose known fields have the right types: recognised in one pass over the bytes. Pure.

All others are read by body.py, which says what is wrong.
"""

from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from appliance.base.jsons import is_decodable

MAX_PLAIN_BYTES = 1024 * 1024  # a larger chat has pictures, which need not be copied
_Object = dict[str, Any]


class _PlainChatMessage(Struct):
    role: str
    content: str | list[Any] | None = None


class PlainChat(Struct):
    """The fields of a chat that have types (see OPENAI_TYPES in body.py); None = absent."""

    messages: Annotated[list[_PlainChatMessage], Meta(min_length=1)]
    model: str | None = None
    stream: bool | None = None
    temperature: float | None = None
    top_p: float | None = None
    n: int | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    stop: str | list[Any] | None = None
    seed: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: _Object | None = None
    user: str | None = None
    tools: list[Any] | None = None
    tool_choice: str | _Object | None = None
    parallel_tool_calls: bool | None = None
    response_format: _Object | None = None
    stream_options: _Object | None = None
    top_logprobs: int | None = None
    reasoning_effort: str | None = None
    dimensions: int | None = None
    encoding_format: str | None = None


_decode = msgspec.json.Decoder(PlainChat).decode


def read_plain_chat(body: bytes) -> PlainChat | None:
    """Return a chat whose known fields are right; None = it has to be looked at."""
    if len(body) > MAX_PLAIN_BYTES:
        return None
    try:
        chat = _decode(body)
    except msgspec.MsgspecError:
        return None
    return chat if is_decodable(body) else None
