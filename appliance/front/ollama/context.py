"""The `context` of /api/generate: an opaque list of numbers that carries a conversation from one request to the next.

An engine that is reached over an API shows no token numbers, so ours hold the conversation's text: its UTF-8 JSON behind a
mark, three bytes a number. Nothing is kept here, and nobody but the client that sends it back can be affected by it.
"""

from itertools import pairwise
from typing import Any

from appliance.base import jsons
from appliance.base.errors import Invalid

_MARK = int.from_bytes(b"ic1", "big")
_STEP = 3  # bytes a number; larger ones would leave the 32-bit integers that clients store
_ROLES = {"system", "user", "assistant"}


def pack(messages: list[dict[str, Any]], answer: str) -> list[int]:
    """Give the context after `answer`.

    Takes   messages: OpenAI's, as they were asked; pictures in them are left out, their text stays
    """
    turns = [[m["role"], _text(m["content"])] for m in messages if m["role"] in _ROLES] + [
        ["assistant", answer]
    ]
    data = jsons.dumps(turns)
    data += b" " * (-len(data) % _STEP)
    return [_MARK, *(int.from_bytes(data[a:b], "big") for a, b in pairwise(range(0, len(data) + 1, _STEP)))]


def unpack(context: list[Any]) -> list[dict[str, Any]]:
    """Give the messages that a context holds.

    Raises  Invalid: it was not made here
    """
    try:
        if context[0] != _MARK:
            raise ValueError
        turns = jsons.loads(b"".join(number.to_bytes(_STEP, "big") for number in context[1:]))
        if not all(role in _ROLES and isinstance(text, str) for role, text in turns):
            raise ValueError
    except (ValueError, OverflowError, AttributeError, TypeError):
        raise Invalid(
            "`context` is not one that this server gave; leave it out, or send the conversation as `messages` to "
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
