"""What the outcome of a command to an engine means, as an error of the appliance."""

from typing import Any

from appliance.base.errors import ApplianceError, Conflict, Invalid, NotFound, UpstreamFailed
from appliance.engines.dialects.contract import LoraReply


def refusal_error(reply: LoraReply, backend: str, name: str) -> ApplianceError:
    """Return the error for a command that an engine did not carry out.

    1. it was started without loading adapters at run time   → Conflict, with what to do about it
    2. it has no adapter of that name                        → NotFound
    3. it has another adapter of that name                   → Conflict
    4. it does not find the adapter's files                  → NotFound
    5. it refuses the command                                → Invalid
    6. it failed                                             → UpstreamFailed

    The engine's own reply is in the details: `engine_status`, `engine_text`.
    """
    details: dict[str, Any] = {"engine_status": reply.status, "engine_text": reply.text, "backend": backend}
    message = f"The backend {backend} refused the adapter {name!r} (HTTP {reply.status}): {reply.text[:500]}"
    if reply.outcome == "off":  # 1
        message = (
            f"The backend {backend} was started without loading adapters at run time. {reply.remedy} "
            f"Its reply (HTTP {reply.status}): {reply.text[:300]}"
        )
        return Conflict(message, code="lora_not_enabled", details=details)
    if reply.outcome == "unknown":  # 2
        return NotFound(message, code="no_such_adapter", details=details)
    if reply.outcome == "already":  # 3
        return Conflict(message, code="adapter_exists", details=details)
    if reply.status == 404:  # 4
        return NotFound(message, code="adapter_not_found", details=details)
    if reply.status < 500:  # 5
        if reply.status >= 400:
            details["status"] = reply.status
        return Invalid(message, code="adapter_refused", details=details)
    return UpstreamFailed(message, code="adapter_refused", details=details)  # 6


def invalid_reply_error(error: ValueError, backend: str) -> ApplianceError:
    """Return the error for an invalid reply."""
    return UpstreamFailed(f"The command to the backend {backend} failed: {error}", code="adapter_refused")
