"""What callers of the upstream pool use: limits, time-outs, a parsed base address, and the errors."""

import re
import ssl
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple
from urllib.parse import quote, urlsplit

from appliance.base.errors import ApplianceError, Kind

Origin = tuple[str, int, bool]  # host, port, is TLS
PoolKey = tuple[str, int, bool, ssl.SSLContext | None]  # what two requests must share to share a connection

_HOST = re.compile(r"[A-Za-z0-9._~:%-]+")
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_PATH_SAFE = "/%:@!$&'()*+,;=~"
_UNSENT = frozenset({"pool", "dns", "connect", "tls"})


class Timeouts(NamedTuple):
    """The time limits of one upstream request, in seconds; None = no limit.

    A named tuple, not a frozen dataclass: one is built for every attempt, and this is three times cheaper.

    Attributes:
        connect_s: DNS, TCP and TLS handshake together.
        first_byte_s: From the last byte of the request to the end of the response head.
        idle_s: Between two pieces, of the response or of a large request body.
        total_s: From the call to the last byte of the response, time in the pool's queue included; of a
            stream that is watched, to its first content.
        content_s: From the last byte of the request to the first content of a stream; bytes without content
            do not count. Its reader says when that is there (UpstreamResponse.watch).
        gap_s: Between two contents of a stream that is watched.
    """

    connect_s: float | None = 5.0
    first_byte_s: float | None = 120.0
    idle_s: float | None = 60.0
    total_s: float | None = None
    content_s: float | None = None
    gap_s: float | None = None


_DEFAULT_TIMEOUTS = Timeouts()


@dataclass(frozen=True, slots=True)
class PoolLimits:
    """What one connection pool allows.

    Attributes:
        timeouts: For requests that bring none of their own.
        pool_s: Longest time in the queue while all connections are in use, in seconds; None = no limit.
        max_connections: Open connections to all origins together.
        max_idle_per_origin: Idle connections kept for one origin.
        keepalive_s: An idle connection is closed after so many seconds.
        max_body_bytes: Longest body of a response that is read whole.
        max_head_bytes: Longest response head; also the limit for trailers and chunk extensions.
    """

    timeouts: Timeouts = _DEFAULT_TIMEOUTS
    pool_s: float | None = 30.0
    max_connections: int = 1024
    max_idle_per_origin: int = 1024
    keepalive_s: float = 60.0
    max_body_bytes: int = 64 * 1024 * 1024
    max_head_bytes: int = 65_536


class WireError(ApplianceError):
    """A connection or a response failed.

    Attributes:
        phase: How far the request had come:

            - `pool`, `dns`, `connect`, `tls`: the server cannot have begun to work on it.
            - `first_byte`: the server may have begun; no response in time, or none at all.
            - `head`: the response head is cut off or is not HTTP.
            - `lost`: given up by `ConnectionPool.fail_waiting`.
            - `idle`: the response had begun, then nothing more arrived.
            - `broken`: the response had begun; it was cut off, or its body is not HTTP.
            - `total`: out of time, at any point; see `was_sent` and `has_begun`.
            - `closed`: we ended it ourselves, at any point.
        was_sent: False: the server cannot have read the whole request, so sending it again repeats nothing.
        has_begun: True: the response head had arrived.
    """

    kind = Kind.UPSTREAM
    default_code: ClassVar[str | None] = "upstream_error"

    def __init__(
        self, message: str, *, phase: str, was_sent: bool | None = None, has_begun: bool = False
    ) -> None:
        super().__init__(message)
        self.phase = phase
        self.was_sent = phase not in _UNSENT if was_sent is None else was_sent
        self.has_begun = has_begun


class Unreachable(WireError):
    """Nothing was sent: the server was not reached, or it is not the one that it should be."""


class PoolFull(WireError):
    """All connections were in use for the whole queue time. This says nothing about the server."""

    kind = Kind.EXHAUSTED
    retryable = True
    default_code = "upstream_pool_full"


class UpstreamTimeout(WireError):
    """The server took too long in `phase`."""

    kind = Kind.TIMEOUT


class BrokenResponse(WireError):
    """The response did not arrive, ended too early, or is not HTTP."""


class StaleConnection(BrokenResponse):
    """A kept-alive connection was closed by the server before one byte of the response (phase first_byte).

    Most likely the server had just closed it for being idle. But unless `was_sent` is False, it may have
    begun the work. A caller for whom doing the work twice is harmless says so with `is_repeatable`, and never
    sees this error.
    """

    retryable = True


@dataclass(frozen=True, slots=True)
class Target:
    """One base address, with everything about it that is the same for every request, made ready once.

    Attributes:
        origin: Host, port, and whether it is TLS.
        prefix: The path in front of each request's own.
        header_lines: Header lines, Host included. They may hold a key, so they are never shown.
        key: Connections are kept by it.
    """

    origin: Origin
    prefix: bytes
    header_lines: bytes = field(repr=False)
    key: PoolKey = field(repr=False)

    @property
    def origin_url(self) -> str:
        """The address without path and secrets: `http://host:port`."""
        host, port, is_tls = self.origin
        return f"{'https' if is_tls else 'http'}://{f'[{host}]' if ':' in host else host}:{port}"

    @classmethod
    def parse(
        cls, address: str, *, headers: dict[str, str] | None = None, ssl_context: ssl.SSLContext | None = None
    ) -> "Target":
        """Parse a base address.

        Args:
            address: `http(s)://host[:port][/path]`.
            headers: Sent with every request; values are never shown.
            ssl_context: For https; None = the pool's. A connection is never shared between two contexts.

        Raises:
            ValueError: It is not such an address, or a header cannot be sent. The text holds no header value.
        """
        try:
            parts = urlsplit(address)
            host, port = parts.hostname or "", parts.port
            host = host if host.isascii() else host.encode("idna").decode()
        except ValueError:
            raise ValueError("the address is not valid; write http(s)://host[:port][/path]") from None
        if parts.username is not None or parts.password is not None:
            raise ValueError(f"the address of {host} contains credentials; give them in a header")
        if parts.scheme not in {"http", "https"} or not _HOST.fullmatch(host) or port == 0:
            raise ValueError(f"{address!r} is not an http(s) address; write http(s)://host[:port][/path]")
        if parts.query or parts.fragment:
            raise ValueError(f"the base address of {host} has a query or a fragment; remove it")
        is_tls = parts.scheme == "https"
        default = 443 if is_tls else 80
        name = f"[{host.partition('%')[0]}]" if ":" in host else host
        lines = {
            "host": ("Host", name if port in {None, default} else f"{name}:{port}"),
            "accept": ("Accept", "*/*"),
            "accept-encoding": ("Accept-Encoding", "identity"),
        }
        lines |= {key.lower(): (key, value) for key, value in (headers or {}).items()}
        prefix = quote(parts.path, safe=_PATH_SAFE).rstrip("/").encode()
        header_lines = b"".join(_header_line(key, value) for key, value in lines.values())
        origin = (host, port or default, is_tls)
        return cls(origin, prefix, header_lines, (*origin, ssl_context if is_tls else None))


def _header_line(key: str, value: str) -> bytes:
    if not _TOKEN.fullmatch(key) or key.lower() in {"content-length", "transfer-encoding"}:
        raise ValueError(f"{key!r} is not a header that can be set")
    if any(c in value for c in "\r\n\0"):
        raise ValueError(f"the header {key} contains a line break")
    try:
        return f"{key}: {value}\r\n".encode("latin-1")
    except UnicodeEncodeError:
        raise ValueError(f"the header {key} contains characters outside Latin-1") from None
