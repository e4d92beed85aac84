"""The demo engine's replies in OpenAI's shapes. Pure."""

import base64
import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from appliance.base import jsons
from appliance.base.errors import Invalid
from appliance.engines.backends.demo_script import DIMENSIONS, ScriptedReply, count_tokens, embed
from appliance.engines.types import EngineRequest

FINGERPRINT = "demo-engine"
MAX_CHOICES = 128
MAX_DIMENSIONS = 4096
MESSAGE_TOKENS = 3  # of a chat message besides its content


@dataclass(frozen=True, slots=True)
class ReplyHead:
    """What every reply has: the request's id, the time in seconds since 1970, the model's public name."""

    request_id: str
    created_s: int
    model: str


def render_completion(
    body: dict[str, Any],
    texts: Sequence[str],
    parts: Sequence[ScriptedReply],
    head: ReplyHead,
    *,
    is_chat: bool,
) -> dict[str, Any]:
    """Render `n` choices of every part.

    Args:
        body: The request's body.
        texts: The prompts, one for each part; of a chat the last user message.
        parts: The replies to them.
        head: See ReplyHead.
        is_chat: A chat.completion; else a text_completion.

    Raises:
        Invalid: `n` is too large.
    """
    n = _count_choices(body)
    render = _chat_choice if is_chat else _text_choice
    repeated = [part for part in parts for _ in range(n)]
    prompt_tokens = count_chat_tokens(body["messages"]) if is_chat else sum(map(count_tokens, texts))
    reasoning_tokens = n * sum(count_tokens(part.reasoning) for part in parts)
    completion_tokens = n * sum(map(_completion_tokens, parts))
    digest = hashlib.blake2b(head.request_id.encode(), digest_size=12).hexdigest()
    return {
        "id": ("chatcmpl-" if is_chat else "cmpl-") + digest,
        "object": "chat.completion" if is_chat else "text_completion",
        "created": head.created_s,
        "model": head.model,
        "choices": [render(index, part, body) for index, part in enumerate(repeated)],
        "usage": {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens,
            "completion_tokens_details": {"reasoning_tokens": reasoning_tokens},
        },
        "system_fingerprint": FINGERPRINT,
    }


def _count_choices(body: dict[str, Any]) -> int:
    wanted = body.get("n")
    n = wanted if isinstance(wanted, int) and wanted > 0 else 1
    if n > MAX_CHOICES:
        raise Invalid(f"`n` must be at most {MAX_CHOICES}.", param="n", code="invalid_value")
    return n


def count_chat_tokens(messages: list[Any]) -> int:
    """Count the tokens of a chat's prompt."""
    return sum(
        count_tokens(jsons.dumps_text(message.get("content"))) + MESSAGE_TOKENS
        for message in messages
        if isinstance(message, dict)
    )


def _completion_tokens(part: ScriptedReply) -> int:
    calls = sum(count_tokens(arguments) for _, arguments in part.tool_calls)
    return count_tokens(part.text) + count_tokens(part.reasoning) + calls


def _chat_choice(index: int, part: ScriptedReply, body: dict[str, Any]) -> dict[str, Any]:
    content = None if part.tool_calls else part.text
    message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
    if part.reasoning:
        message["reasoning_content"] = part.reasoning
    if part.tool_calls:
        message["tool_calls"] = [
            {
                "id": f"call_demo_{index}_{number}",
                "type": "function",
                "function": {"name": name, "arguments": arguments},
            }
            for number, (name, arguments) in enumerate(part.tool_calls)
        ]
    logprobs = None
    if body.get("logprobs") and part.text:
        top = body.get("top_logprobs") or 0
        words = [word for word in part.text.replace(" ", "\0 ").split("\0") if word]
        logprobs = {"content": [_logprob(word, top) for word in words], "refusal": None}
    return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": part.finish_reason}


def _text_choice(index: int, part: ScriptedReply, body: dict[str, Any]) -> dict[str, Any]:
    return {"index": index, "text": part.text, "logprobs": None, "finish_reason": part.finish_reason}


def _logprob(word: str, top: int) -> dict[str, Any]:
    entry = {"token": word, "logprob": 0.0, "bytes": list(word.encode())}
    return {**entry, "top_logprobs": [dict(entry)] if top else []}


def render_embeddings(body: dict[str, Any], model: str) -> dict[str, Any]:
    """Render the embeddings of `input`, as lists of floats or as base64 of little-endian floats.

    Raises:
        Invalid: `input` or `dimensions` is invalid.
    """
    inputs = _inputs(body.get("input"))
    dimensions = body.get("dimensions") or DIMENSIONS
    if not isinstance(dimensions, int) or not 1 <= dimensions <= MAX_DIMENSIONS:
        raise Invalid(f"`dimensions` must be an integer from 1 to {MAX_DIMENSIONS}.", param="dimensions")
    is_base64 = body.get("encoding_format") == "base64"
    rows = []
    for index, item in enumerate(inputs):
        vector: Any = embed(item if isinstance(item, str) else " ".join(map(str, item)), dimensions)
        if is_base64:
            vector = base64.b64encode(struct.pack(f"<{dimensions}f", *vector)).decode()
        rows.append({"object": "embedding", "index": index, "embedding": vector})
    count = sum(count_tokens(item) if isinstance(item, str) else len(item) for item in inputs)
    usage = {"prompt_tokens": count, "total_tokens": count}
    return {"object": "list", "data": rows, "model": model, "usage": usage}


def _inputs(value: Any) -> list[Any]:
    is_one = isinstance(value, str) or (isinstance(value, list) and value and isinstance(value[0], int))
    inputs = [value] if is_one else value
    if not isinstance(inputs, list) or not all(isinstance(item, (str, list)) for item in inputs):
        raise Invalid(
            "`input` must be a string, an array of strings, or arrays of token numbers.", param="input"
        )
    return inputs


def read_prompts(request: EngineRequest) -> list[str]:
    """Return the prompts of a completion; token numbers become text.

    Raises:
        Invalid: `prompt` is invalid.
    """
    prompt = request.body.get("prompt")
    if isinstance(prompt, str):
        return [prompt]
    if isinstance(prompt, list) and prompt:
        if all(isinstance(item, str) for item in prompt):
            return list(prompt)
        if all(isinstance(item, int) for item in prompt):
            return [" ".join(map(str, prompt))]
        if all(isinstance(item, list) for item in prompt):
            return [" ".join(map(str, row)) for row in prompt]
    raise Invalid(
        "`prompt` must be a string, an array of strings, or arrays of token numbers.",
        param="prompt",
        code="invalid_type",
    )
