"""What callers of the upstream pool hold: its limits, a base address made ready, and the ways in which a call can fail."""

import re
import ssl
from dataclasses import dataclass, field
from typing import ClassVar
from urllib.parse import quote, urlsplit

from appliance.base.errors import ApplianceError, Kind

Origin = tuple[str, int, bool]  # host, port, is TLS
PoolKey = tuple[str, int, bool, ssl.SSLContext | None]  # what two requests must share to share a connection

_HOST = re.compile(r"[A-Za-z0-9._~:%-]+")
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_PATH_SAFE = "/%:@!$&'()*+,;=~"
_UNSENT = frozenset({"pool", "dns", "connect", "tls"})


@dataclass(frozen=True, slots=True)
class PoolLimits:
    """What the pool holds itself to. Seconds may be None = no limit; a call can give its own for the first five."""

    connect_s: float | None = 5.0  # DNS, TCP and TLS together
    first_byte_s: float | None = 120.0  # from the request's last byte to the end of the answer's head
    idle_s: float | None = 60.0  # between two pieces, of the answer or of a large request
    total_s: float | None = None  # from the call to the answer's last byte
    pool_s: float | None = 30.0  # in line while all connections are in use
    max_connections: int = 1024
    max_idle_per_origin: int = 256
    keepalive_s: float = 60.0
    max_body_bytes: int = 64 * 1024 * 1024  # of answers that are read whole
    max_head_bytes: int = 65_536  # of the head, and of whatever else is no body (trailers, chunk extensions)


class WireError(ApplianceError):
    """A connection or an answer failed.

    phase      how far it had come:
               pool · dns · connect · tls   the server cannot have begun on the request
               first_byte · head · lost     it may have: no answer in time, or none at all · a head that is cut or is no HTTP ·
                                            given up for lost by `Wire.fail_waiting`
               idle · broken                the answer had begun: it fell silent · it broke off, or its body is no HTTP
               total · closed               at any point, see was_sent and has_begun: out of time · we ended it ourselves
    was_sent   False: the server cannot have read this request whole, so that sending it again repeats nothing
    has_begun  True: the head of the answer had arrived
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
    """Nothing was sent: the server was not reached, or is not who it should be."""


class PoolFull(WireError):
    """All connections were in use for as long as a call may stand in line. It says nothing about the server."""

    kind = Kind.EXHAUSTED
    retryable = True
    default_code = "upstream_pool_full"


class UpstreamTimeout(WireError):
    """The server took too long in `phase`."""

    kind = Kind.TIMEOUT


class BrokenResponse(WireError):
    """The answer did not come, ended too early, or is no HTTP."""


class StaleConnection(BrokenResponse):
    """A kept connection ended without one byte of an answer after the request had been written to it (phase first_byte).

    Most likely the server had just closed it for being idle; but unless `was_sent` is False it may have begun the work. Whoever
    can bear that it is done twice says so beforehand, `is_repeatable`, and does not see this.
    """

    retryable = True


@dataclass(frozen=True, slots=True)
class Target:
    """One base address with everything about it that does not change from call to call, made ready once."""

    origin: Origin
    prefix: bytes  # the path before each call's own
    constant: bytes = field(repr=False)  # header lines, Host included; may hold a key, so it is never shown
    key: PoolKey = field(repr=False)  # connections are kept by it

    @property
    def origin_url(self) -> str:
        """Where it is, without path and secrets: `http://host:port`."""
        host, port, is_tls = self.origin
        return f"{'https' if is_tls else 'http'}://{f'[{host}]' if ':' in host else host}:{port}"

    @classmethod
    def parse(
        cls, address: str, *, headers: dict[str, str] | None = None, ssl_context: ssl.SSLContext | None = None
    ) -> "Target":
        """Read a base address.

        Takes   address: `http(s)://host[:port][/path]`; headers: sent with every call (a secret in them is never shown);
                ssl_context: for https, None = the pool's; a connection is never shared between two contexts
        Raises  ValueError: not such an address, or a header that cannot be sent; the text holds no header's value
        """
        try:
            parts = urlsplit(address)
            host, port = parts.hostname or "", parts.port
            host = host if host.isascii() else host.encode("idna").decode()
        except ValueError:
            raise ValueError("the address cannot be read; write http(s)://host[:port][/path]") from None
        if parts.username is not None or parts.password is not None:
            raise ValueError(f"the address of {host} has credentials in it; give them apart")
        if parts.scheme not in {"http", "https"} or not _HOST.fullmatch(host) or port == 0:
            raise ValueError(f"{address!r} is no http(s) address")
        if parts.query or parts.fragment:
            raise ValueError(
                f"the base address of {host} has a query or a fragment, which no call would send"
            )
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
        constant = b"".join(_line(key, value) for key, value in lines.values())
        origin = (host, port or default, is_tls)
        return cls(origin, prefix, constant, (*origin, ssl_context if is_tls else None))


def _line(key: str, value: str) -> bytes:
    if not _TOKEN.fullmatch(key) or key.lower() in {"content-length", "transfer-encoding"}:
        raise ValueError(f"{key!r} is no header that can be set")
    if any(c in value for c in "\r\n\0"):
        raise ValueError(f"the header {key} has a line break in it")
    try:
        return f"{key}: {value}\r\n".encode("latin-1")
    except UnicodeEncodeError:
        raise ValueError(f"the header {key} has characters in it that no header can carry") from None
