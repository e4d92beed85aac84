"""What clients of a socket send, checked. For compatibility, see docs/compatibility.md."""

import re
from typing import Any, Final

from appliance.base import jsons
from appliance.base.errors import Invalid
from appliance.storage.events import TOPICS

MAX_SEQ: Final = 2**53
MAX_TOKEN_CHARACTERS: Final = 4096
_GOOD_ID: Final = re.compile(r"[A-Za-z0-9._:-]{1,64}")
TYPES: Final = ("ping", "auth", "subscribe", "unsubscribe", "chat", "cancel")


def read_message(raw: str | bytes) -> dict[str, Any]:
    """Read a message: an object with a known `type`.

    Raises:
        Invalid: With the texts `Invalid JSON`, `Missing message type` and `Unknown message type`.
    """
    try:
        message = jsons.loads(raw)
    except (jsons.InvalidJson, RecursionError):
        message = None
    if not isinstance(message, dict):
        raise Invalid("Invalid JSON", code="invalid_json")
    if not isinstance(message.get("type"), str):
        raise Invalid("Missing message type", code="missing_type")
    if message["type"] not in TYPES:
        raise Invalid("Unknown message type", code="unknown_type", details={"allowed": list(TYPES)})
    return message


def topics_in(message: dict[str, Any], allowed: frozenset[str]) -> frozenset[str]:
    """Return the topics that a message names, without any all that are allowed.

    Raises:
        Invalid: It names one that there is not, or that this caller may not hear.
    """
    named = message.get("topics")
    if named is None:
        return allowed
    if not isinstance(named, list) or not all(isinstance(one, str) for one in named):
        raise Invalid("`topics` must be a list of names.", param="topics", code="invalid_topics")
    for one in named:
        if one not in TOPICS:
            raise Invalid(
                f"There is no topic {one[:40]!r}; there are {', '.join(TOPICS)}.",
                param="topics",
                code="unknown_topic",
            )
        if one not in allowed:
            raise Invalid(
                f"The topic {one!r} is not open to this credential; open are: "
                f"{', '.join(sorted(allowed)) or 'none'}.",
                param="topics",
                code="topic_not_allowed",
            )
    return frozenset(named)


def seq_in(message: dict[str, Any], name: str) -> int | None:
    """Return the number of an event in a message; None = it has none.

    Raises:
        Invalid: It is no whole number from 0.
    """
    value = message.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_SEQ:
        raise Invalid(
            f"`{name}` must be a whole number from 0, not {str(value)[:40]!r}.",
            param=name,
            code="invalid_seq",
        )
    return value


def token_in(message: dict[str, Any]) -> str:
    """Return the credential of a message `auth`.

    Raises:
        Invalid: There is none.
    """
    token = message.get("token")
    if not isinstance(token, str) or not 0 < len(token) <= MAX_TOKEN_CHARACTERS or not token.isprintable():
        raise Invalid("`token` must be an API key or an access token.", param="token", code="invalid_token")
    return token


def chat_id_in(message: dict[str, Any]) -> str:
    """Return the client's own id of a chat.

    Raises:
        Invalid: It is none.
    """
    value = message.get("id")
    if not isinstance(value, str) or _GOOD_ID.fullmatch(value) is None:
        raise Invalid(
            "`id` must be 1 to 64 letters, digits, `.`, `_`, `:`, `-`.", param="id", code="invalid_id"
        )
    return value


def chat_body_in(message: dict[str, Any]) -> dict[str, Any]:
    """Return the request of a chat, as `/v1/chat/completions` takes it.

    Raises:
        Invalid: It is no object.
    """
    body = message.get("body")
    if not isinstance(body, dict):
        raise Invalid(
            "`body` must be an object, a request of /v1/chat/completions.", param="body", code="invalid_body"
        )
    return body
