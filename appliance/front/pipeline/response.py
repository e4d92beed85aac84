"""What a handler returns: a response in one piece, or as a stream of pieces."""

from dataclasses import dataclass, field
from typing import Any

from appliance.base import jsons
from appliance.engines.stream import Stream


@dataclass(slots=True)
class Response:
    """One answer: `body` in one piece, or `pieces` as they come (each written and flushed at once; aclose ends all below).

    headers: extra headers, names in the spelling to send; Content-Type apart in `content_type`.
    `on_error` renders an error that struck after the first piece into a last piece of the dialect.
    """

    status: int = 200
    body: bytes = b""
    content_type: str = "application/json"
    pieces: Stream | None = None
    headers: list[tuple[str, str]] = field(default_factory=list)
    on_error: Any = None  # Callable[[ApplianceError], bytes] | None
    heartbeat: bytes = b""  # sent between pieces while nothing else is, every HEARTBEAT_S; b"" = never


def json_response(value: Any, status: int = 200) -> Response:
    """Give one JSON value as an answer."""
    return Response(status, jsons.dumps(value))
