"""Engines' whole replies, parsed for the dialects that translate them."""

from typing import Any

from appliance.base import jsons
from appliance.base.errors import ApplianceError, Invalid, UpstreamFailed
from appliance.engines.types import EngineReply


def parse_reply(reply: EngineReply) -> dict[str, Any]:
    """Parse a whole reply.

    Raises:
        UpstreamFailed: It is not a JSON object.
    """
    try:
        value = jsons.loads(reply.body or b"")
    except jsons.InvalidJson as exc:
        raise UpstreamFailed(f"The engine's reply is not JSON: {exc}.", code="upstream_rubbish") from None
    if not isinstance(value, dict):
        raise UpstreamFailed("The engine's reply is not a JSON object.", code="upstream_rubbish")
    return value


def parse_error_reply(status: int, body: bytes) -> ApplianceError:
    """Turn an error reply into an error with the same status and message."""
    try:
        value = jsons.loads(body)
    except jsons.InvalidJson:
        value = None
    error = value.get("error") if isinstance(value, dict) else None
    message = error.get("message") if isinstance(error, dict) else error
    kind = Invalid if status < 500 else UpstreamFailed
    text = str(message or f"The engine refused the request with status {status}.")
    return kind(text, details={"status": status})
