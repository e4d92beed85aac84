"""How many tokens a prompt has, estimated: for backends that cannot count them. Pure."""

from math import ceil
from typing import Any

from appliance.base import jsons

ESTIMATE = "x-appliance-estimate"  # the response header that says that a count is one
BYTES_PER_TOKEN = 3.5  # English has some 4, code and other languages less: rather too many than too few
MESSAGE_TOKENS = 4  # that a message costs beside its content
IMAGE_TOKENS = 1_000


def estimate_tokens(body: dict[str, Any]) -> int:
    """Return about how many tokens the prompt of a chat has.

    Args:
        body: Chat's: `messages`, `tools`.
    """
    bytes_total = len(jsons.dumps(body["tools"])) if body.get("tools") else 0
    tokens = 0
    for message in body["messages"]:
        tokens += MESSAGE_TOKENS
        content = message.get("content")
        for part in content if isinstance(content, list) else [{"type": "text", "text": content or ""}]:
            if part["type"] == "text":
                bytes_total += len(part["text"].encode())
            else:
                tokens += IMAGE_TOKENS
        bytes_total += len(message.get("reasoning_content", "").encode())
        if message.get("tool_calls"):
            bytes_total += len(jsons.dumps(message["tool_calls"]))
    return tokens + ceil(bytes_total / BYTES_PER_TOKEN)
