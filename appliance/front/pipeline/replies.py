"""Engines' answers in one piece, read at the door."""

from typing import Any

from appliance.base import jsons
from appliance.base.errors import ApplianceError, Invalid, UpstreamFailed
from appliance.engines.types import EngineReply


def parse_reply(reply: EngineReply) -> dict[str, Any]:
    """Read an answer.

    Raises  UpstreamFailed: it is no JSON object
    """
    try:
        value = jsons.loads(reply.body or b"")
    except jsons.InvalidJson as exc:
        raise UpstreamFailed(f"The engine's answer is no JSON: {exc}.", code="upstream_rubbish") from None
    if not isinstance(value, dict):
        raise UpstreamFailed("The engine's answer is no JSON object.", code="upstream_rubbish")
    return value


def parse_error_reply(status: int, body: bytes) -> ApplianceError:
    """Turn an error answer into an error with the same status and sentence."""
    try:
        value = jsons.loads(body)
    except jsons.InvalidJson:
        value = None
    error = value.get("error") if isinstance(value, dict) else None
    message = error.get("message") if isinstance(error, dict) else error
    kind = Invalid if status < 500 else UpstreamFailed
    return kind(
        str(message or f"The engine refused the request with status {status}."),
        details={"status": status},
    )
