"""Whole responses that are just as OpenAI's API has them, recognised in one pass over the bytes. Pure.

Most responses are. All others, whatever is unusual about them, are read by whole_reply.py, which knows the
shapes that engines send and says what is wrong.
"""

from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from appliance.base.jsons import read_typed

TokenCount = Annotated[int, Meta(ge=0, lt=2**53)]


class _PlainFunction(Struct):
    name: str
    arguments: str


class _PlainToolCall(Struct):
    function: _PlainFunction
    id: str | None = None


class _PlainReplyMessage(Struct):
    content: str | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    thinking: str | None = None
    tool_calls: list[_PlainToolCall] | None = None
    function_call: None = None


class _PlainChoice(Struct):
    message: _PlainReplyMessage | None = None
    text: str | None = None
    finish_reason: str | None = None


class PlainPromptDetails(Struct):
    """How the tokens of a prompt were read."""

    cached_tokens: TokenCount | None = None


class PlainUsage(Struct):
    """The token counts of a response; None = not given."""

    prompt_tokens: TokenCount | None = None
    completion_tokens: TokenCount | None = None
    prompt_tokens_details: PlainPromptDetails | None = None


class PlainReply(Struct):
    """A chat or completion without anything unusual.

    Attributes:
        model: The model's name; "" = none.
        usage: None = none.
    """

    choices: list[_PlainChoice]
    model: str = ""
    usage: PlainUsage | None = None
    error: None = None


_decode = msgspec.json.Decoder(PlainReply).decode


def read_plain_reply(body: bytes) -> PlainReply | None:
    """Return a response of OpenAI's shape that needs no repair; None = it has to be looked at."""
    reply = read_typed(_decode, body)
    if reply is None:
        return None
    for choice in reply.choices:
        if choice.finish_reason == "error":
            return None
    return reply
