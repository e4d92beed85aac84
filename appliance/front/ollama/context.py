"""The `context` of /api/generate: a conversation as an opaque list of numbers, for the next request.

An engine behind an API does not show its token numbers, so ours hold the conversation's text: its UTF-8 JSON
after a marker, three bytes per number. Nothing is stored here.
"""

from itertools import pairwise
from typing import Any

from appliance.base import jsons
from appliance.base.errors import Invalid

_MARKER = int.from_bytes(b"ic1", "big")
# A larger number would not fit the 32-bit integers that clients store.
_BYTES_PER_NUMBER = 3
_ROLES = {"system", "user", "assistant"}


def pack_context(messages: list[dict[str, Any]], reply: str) -> list[int]:
    """Return the context of a conversation and the reply to it.

    Args:
        messages: OpenAI's, as they were sent; their images are left out.
        reply: The text of the reply.
    """
    turns = [[m["role"], _text(m["content"])] for m in messages if m["role"] in _ROLES] + [
        ["assistant", reply]
    ]
    data = jsons.dumps(turns)
    data += b" " * (-len(data) % _BYTES_PER_NUMBER)
    return [
        _MARKER,
        *(int.from_bytes(data[a:b], "big") for a, b in pairwise(range(0, len(data) + 1, _BYTES_PER_NUMBER))),
    ]


def unpack_context(context: list[Any]) -> list[dict[str, Any]]:
    """Return the messages in a context.

    Raises:
        Invalid: It was not made by this server.
    """
    try:
        if context[0] != _MARKER:
            raise ValueError
        turns = jsons.loads(b"".join(number.to_bytes(_BYTES_PER_NUMBER, "big") for number in context[1:]))
        if not all(role in _ROLES and isinstance(text, str) for role, text in turns):
            raise ValueError
    except (ValueError, OverflowError, AttributeError, TypeError):
        raise Invalid(
            "`context` was not made by this server. Leave it out, or send the conversation as `messages` to "
            "/api/chat.",
            param="context",
        ) from None
    return [{"role": role, "content": text} for role, text in turns]


def _text(content: Any) -> str:
    if isinstance(content, list):
        return "\n".join(
            part["text"] for part in content if isinstance(part, dict) and isinstance(part.get("text"), str)
        )
    return content if isinstance(content, str) else ""
