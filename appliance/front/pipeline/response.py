"""What a handler returns: a whole response, or a stream of pieces."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from appliance.base import jsons
from appliance.base.errors import ApplianceError
from appliance.engines.stream import Stream


@dataclass(slots=True)
class Response:
    """One response: a whole `body`, or a stream of `pieces`.

    Attributes:
        pieces: Each is written at once; closing the stream also closes what it is made from.
        headers: Without Content-Type; names in the spelling to send.
        on_error: Renders a failure after the first piece as the last piece, in the dialect of the stream;
            None = the stream ends without one.
        cuts_on_failure: After a failure the connection is cut, so that what was sent does not look whole: for
            bodies in which no error can be said.
        heartbeat: Sent between pieces while there is nothing else to send, every HEARTBEAT_S; b"" = never.
    """

    status: int = 200
    body: bytes = b""
    content_type: str = "application/json"
    pieces: Stream | None = None
    headers: list[tuple[str, str]] = field(default_factory=list)
    on_error: Callable[[ApplianceError], bytes] | None = None
    heartbeat: bytes = b""
    cuts_on_failure: bool = False

    def render_failure(self, error: ApplianceError) -> bytes:
        """Render a failure of the stream as its last piece; b"" = none."""
        return self.on_error(error) if self.on_error is not None else b""


def json_response(value: Any, status: int = 200) -> Response:
    """Return one JSON value as a response."""
    return Response(status, jsons.dumps(value))


def split_fields(lines: str) -> list[tuple[str, str]]:
    """Return the fields of lines as `render_fields` makes them."""
    return [(name, value) for name, _, value in (line.partition(": ") for line in lines.splitlines())]


def render_fields(fields: list[tuple[str, str]]) -> str:
    """Render fields of a head as lines."""
    return "".join([f"{name}: {value}\r\n" for name, value in fields])
