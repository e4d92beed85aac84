"""HTTP heads on a client's connection: parse those of requests, render those of responses. No I/O."""

import re
from dataclasses import dataclass

import httptools

from appliance.front.pipeline.request import KnownCaller
from appliance.front.pipeline.response import Response, render_fields
from appliance.front.pipeline.route import Route

AGENT = "inference-appliance"  # the name in `Server` and `Via`
REASONS = {
    200: "OK",
    400: "Bad Request",
    401: "Unauthorized",
    402: "Payment Required",
    403: "Forbidden",
    404: "Not Found",
    408: "Request Timeout",
    409: "Conflict",
    413: "Content Too Large",
    415: "Unsupported Media Type",
    422: "Unprocessable Content",
    429: "Too Many Requests",
    431: "Request Header Fields Too Large",
    499: "Client Closed Request",
    500: "Internal Server Error",
    501: "Not Implemented",
    502: "Bad Gateway",
    503: "Service Unavailable",
    504: "Gateway Timeout",
}


_LENGTH = re.compile(rb"\r\nContent-Length: *(\d{1,15})(?=\r\n)", re.IGNORECASE)
MAX_LENGTH_DIGITS = 15
OK_LINE = "HTTP/1.1 200 OK\r\n"
END, LAST = "\r\n", "Connection: close\r\n\r\n"


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


class KnownHead:
    """The head of a connection's latest request: most clients send the same one again and again.

    Only the length of the body may differ. A head that is known needs no parsing, and no second look at the
    caller's key.

    Attributes:
        route: The address.
        headers: Its fields by lower-case name.
        may_stay: The connection may be kept after the response.
        known_caller: What was decided about the caller.
    """

    __slots__ = ("_after", "_before", "headers", "known_caller", "may_stay", "route")

    def __init__(
        self, before: bytes, after: bytes, route: Route, headers: dict[str, str], *, may_stay: bool
    ) -> None:
        self._before, self._after = before, after
        self.route, self.headers, self.may_stay = route, headers, may_stay
        self.known_caller = KnownCaller()

    @classmethod
    def of(cls, head: bytes, route: Route, headers: dict[str, str], *, may_stay: bool) -> "KnownHead | None":
        """Return a parsed head for comparing others with it; None = its length is not a plain number."""
        found = _LENGTH.search(head)
        if found is None or headers.get("content-length") != found.group(1).decode():
            return None
        return cls(head[: found.start(1)], head[found.end(1) :], route, headers, may_stay=may_stay)

    def compare(self, buffer: bytes, begin: int) -> tuple[int, int] | None:
        """Compare the head that begins in a buffer; the length in `headers` is then the new one.

        Returns:
            (size of the body, where it begins); None = it is another head, or not complete.
        """
        before, after = self._before, self._after
        if not buffer.startswith(before, begin):
            return None
        at = begin + len(before)
        end = buffer.find(b"\r", at, at + MAX_LENGTH_DIGITS + 1)
        if end < 0 or not buffer.startswith(after, end):
            return None
        digits = buffer[at:end]
        if not digits.isdigit():
            return None
        self.headers["content-length"] = digits.decode()
        return int(digits), end + len(after)


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


def asks_to_switch(head: bytes) -> bool:
    """Whether a head may ask to switch protocols: a quick look, before it is parsed."""
    return head[:4] == b"GET " and b"\nupgrade:" in head.lower()


def parse_upgrade(head: bytes) -> Upgrade | None:
    """Parse a head that asks to switch protocols; None = it does not, is not HTTP/1.1, or is invalid."""
    if not asks_to_switch(head):
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


def render_response_head(
    response: Response, framing: str, own_lines: str, *, date_line: str, may_stay: bool
) -> bytes:
    """Render a response's head, its blank line included.

    Args:
        response: Its status and headers.
        framing: The Content-Length or Transfer-Encoding line.
        own_lines: Lines that every response gets (see RequestPipeline.header_lines).
        date_line: The Date header, with its line break.
        may_stay: The connection is kept after the response.
    """
    status, headers = response.status, response.headers
    return (
        f"{OK_LINE if status == 200 else _status_line(status)}{date_line}{framing}"
        f"Content-Type: {response.content_type}\r\n{render_fields(headers) if headers else ''}{own_lines}"
        f"{END if may_stay else LAST}"
    ).encode("latin-1", "replace")


def _status_line(status: int) -> str:
    return f"HTTP/1.1 {status} {REASONS.get(status, 'Status')}\r\n"
