"""HTTP heads on a client's connection: parse those of requests, render those of responses. No I/O."""

from dataclasses import dataclass

import httptools

from appliance.front.pipeline.response import Response

AGENT = "inference-appliance"  # the name in `Server` and `Via`
REASONS = {
    200: b"OK",
    400: b"Bad Request",
    401: b"Unauthorized",
    403: b"Forbidden",
    404: b"Not Found",
    408: b"Request Timeout",
    409: b"Conflict",
    413: b"Content Too Large",
    415: b"Unsupported Media Type",
    422: b"Unprocessable Content",
    429: b"Too Many Requests",
    431: b"Request Header Fields Too Large",
    499: b"Client Closed Request",
    500: b"Internal Server Error",
    501: b"Not Implemented",
    502: b"Bad Gateway",
    503: b"Service Unavailable",
    504: b"Gateway Timeout",
}


class BadHead(ValueError):
    """A request's head cannot be read; the message says why."""


class _Headers:
    """Collects one request's fields from httptools, by lower-case name."""

    __slots__ = ("headers",)

    def __init__(self) -> None:
        self.headers: dict[str, str] = {}

    def on_header(self, name: bytes, value: bytes) -> None:
        key = name.decode("latin-1").lower()
        text = value.decode("latin-1")
        self.headers[key] = f"{self.headers[key]}, {text}" if key in self.headers else text


class _Fields(_Headers):
    """Also keeps the fields in their order and spelling."""

    __slots__ = ("fields",)

    def __init__(self) -> None:
        super().__init__()
        self.fields: list[tuple[str, str]] = []

    def on_header(self, name: bytes, value: bytes) -> None:
        super().on_header(name, value)
        self.fields.append((name.decode("latin-1"), value.decode("latin-1")))


def parse_request_head(head: bytes) -> tuple[dict[str, str], bool]:
    """Parse a request's head, its blank line included.

    Returns:
        (fields by lower-case name, several of one name joined; whether the connection may be kept after the
        response)

    Raises:
        BadHead: It cannot be read.
    """
    found = _Headers()
    parser = httptools.HttpRequestParser(found)
    try:
        parser.feed_data(head)
    except httptools.HttpParserUpgrade:
        pass  # answered as HTTP/1.1, as a server may that does not switch
    except httptools.HttpParserError as exc:
        raise BadHead(str(exc)) from None
    # Once a request is complete (here it has no body), the parser has forgotten `Connection: close`.
    is_closed = "close" in found.headers.get("connection", "").lower()
    return found.headers, parser.should_keep_alive() and not is_closed


@dataclass(frozen=True, slots=True)
class Upgrade:
    """A request to switch protocols.

    Attributes:
        target: Path and query.
        fields: In their order and spelling.
        headers: The same by lower-case name.
    """

    target: str
    fields: list[tuple[str, str]]
    headers: dict[str, str]

    @property
    def path(self) -> str:
        """The target without its query."""
        return self.target.partition("?")[0]


def parse_upgrade(head: bytes) -> Upgrade | None:
    """Parse a head that asks to switch protocols; None = it does not, is not HTTP/1.1, or is invalid."""
    if head[:4] != b"GET " or b"\nupgrade:" not in head.lower():
        return None
    found = _Fields()
    parser = httptools.HttpRequestParser(found)
    try:
        parser.feed_data(head)
    except httptools.HttpParserUpgrade:
        pass  # expected: httptools stops at the switch
    except httptools.HttpParserError:
        return None  # aiohttp says what is wrong with it
    words = {word.strip().lower() for word in found.headers.get("connection", "").split(",")}
    if (
        "upgrade" not in words
        or found.headers.get("upgrade", "").lower() == "h2c"
        or parser.get_http_version() != "1.1"
        or found.headers.get("content-length", "0") != "0"  # a body belongs to the request, not to the tunnel
        or "transfer-encoding" in found.headers
    ):
        return None
    target = head[4 : head.find(b"\r\n")].rpartition(b" ")[0].decode("latin-1")
    return Upgrade(target, found.fields, found.headers)


def render_response_head(response: Response, framing: bytes, *, date_line: bytes, may_stay: bool) -> bytes:
    """Render a response's head, its blank line included.

    Args:
        framing: The Content-Length or Transfer-Encoding line.
        date_line: The Date header, with its line break.
        may_stay: The connection is kept after the response.
    """
    fields = f"Content-Type: {response.content_type}\r\n" + "".join(
        [f"{name}: {value}\r\n" for name, value in response.headers]
    )
    return b"HTTP/1.1 %d %b\r\n%b%b%b%b" % (
        response.status,
        REASONS.get(response.status, b"Status"),
        date_line,
        framing,
        fields.encode("latin-1", "replace"),
        b"\r\n" if may_stay else b"Connection: close\r\n\r\n",
    )
