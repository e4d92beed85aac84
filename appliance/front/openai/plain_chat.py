"""Chats whose fields are all known and have the right types: recognised in one pass over the bytes. Pure.

All others are read by body.py, which says what is wrong. Chats with fields that are not known here are among
them: msgspec skips those without a look at their numbers, and 1e999 is none.
"""

from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from appliance.base.jsons import read_typed

MAX_PLAIN_BYTES = 1024 * 1024  # a larger chat has pictures, which need not be copied
_Object = dict[str, Any]
_Integer = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]  # longer ones are read as numbers by orjson


class _PlainChatMessage(Struct, forbid_unknown_fields=True):
    role: str
    content: str | list[Any] | None = None
    # As usual clients send them; their types are not checked.
    name: Any = None
    tool_calls: Any = None
    tool_call_id: Any = None
    reasoning_content: Any = None
    reasoning: Any = None
    refusal: Any = None
    function_call: Any = None
    audio: Any = None
    annotations: Any = None


class PlainChat(Struct, forbid_unknown_fields=True):
    """The fields of a chat that have types (see OPENAI_TYPES in body.py), and others that usual clients send.

    None = absent.
    """

    messages: Annotated[list[_PlainChatMessage], Meta(min_length=1)]
    model: str | None = None
    stream: bool | None = None
    temperature: float | None = None
    top_p: float | None = None
    n: _Integer | None = None
    max_tokens: _Integer | None = None
    max_completion_tokens: _Integer | None = None
    stop: str | list[Any] | None = None
    seed: _Integer | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: _Object | None = None
    user: str | None = None
    tools: list[Any] | None = None
    tool_choice: str | _Object | None = None
    parallel_tool_calls: bool | None = None
    response_format: _Object | None = None
    stream_options: _Object | None = None
    top_logprobs: _Integer | None = None
    reasoning_effort: str | None = None
    dimensions: _Integer | None = None
    encoding_format: str | None = None
    # Their types are not checked.
    logprobs: Any = None
    metadata: Any = None
    store: Any = None
    service_tier: Any = None
    safety_identifier: Any = None
    prompt_cache_key: Any = None
    verbosity: Any = None
    modalities: Any = None
    functions: Any = None
    function_call: Any = None
    top_k: Any = None
    min_p: Any = None
    repetition_penalty: Any = None
    repeat_penalty: Any = None
    min_tokens: Any = None
    ignore_eos: Any = None
    stop_token_ids: Any = None
    skip_special_tokens: Any = None
    chat_template_kwargs: Any = None
    cache_prompt: Any = None
    id_slot: Any = None
    n_predict: Any = None
    grammar: Any = None
    thinking: Any = None
    enable_thinking: Any = None
    separate_reasoning: Any = None


_decode = msgspec.json.Decoder(PlainChat).decode


def read_plain_chat(body: bytes) -> PlainChat | None:
    """Return a chat whose known fields are right; None = it has to be looked at."""
    return read_typed(_decode, body) if len(body) <= MAX_PLAIN_BYTES else None
