"""HTTP to a server as it comes, for what is not hot: any method, bodies streamed both ways, nothing decoded, nothing followed.

aiohttp's client, and the only place where it enters. The hot path has a pool of its own (wire.py), which is several times as
fast and can do less. Failures are told in the wire's words, so that callers have one table of them.
"""

import asyncio
import ipaddress
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from types import TracebackType

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from appliance.base.errors import Forbidden
from appliance.base.wire_types import BrokenAnswer, Unreachable, UpstreamTimeout

MOST_CONNECTIONS = 512
OURS = ("Accept", "Accept-Encoding", "Content-Type", "User-Agent")      # what the library would add by itself


RefusalOf = Callable[[str], str]                                       # an IP address → why it may not be reached, "" = it may


class AddressRefused(OSError):
    """A name leads to an address that may not be reached."""


class _Guarded(AbstractResolver):
    """Looks names up, and refuses one that leads to an address that may not be reached: what is connected to is what was looked at."""

    def __init__(self, refusal_of: RefusalOf) -> None:
        self._inner = aiohttp.ThreadedResolver()
        self._refusal_of = refusal_of

    async def resolve(self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET) -> list[ResolveResult]:
        found = await self._inner.resolve(host, port, family)
        for row in found:
            if why := self._refusal_of(row["host"]):
                raise AddressRefused(f"{host} may not be reached: {why}")
        return found

    async def close(self) -> None:
        await self._inner.close()


class HttpClient:
    """Two sets of connections: kept ones for requests that may be repeated, fresh ones for those that may not.

    A kept connection can die with a request on it that the server may or may not have begun; a fresh one leaves no such doubt.

    Takes   refusal_of: asked about every address before it is connected to; None = all may be reached
            read_bytes: what is read of an answer before its reader has taken it
    """

    def __init__(self, *, refusal_of: RefusalOf | None = None, read_bytes: int = 65_536) -> None:
        self._refusal_of = refusal_of
        self._read_bytes = read_bytes
        self._kept: aiohttp.ClientSession | None = None
        self._fresh: aiohttp.ClientSession | None = None

    async def open(self, method: str, url: str, *, headers: list[tuple[str, str]], body: bytes | AsyncIterator[bytes] | None,
                   ssl_context: ssl.SSLContext | None = None, may_keep: bool, connect_s: float,
                   first_byte_s: float | None) -> aiohttp.ClientResponse:
        """Send a request and wait for the head of its answer.

        Takes   url: percent-encoded, sent as it is; headers: all that are to be sent, Host apart; body: an iterator is sent as it comes,
                chunked unless the headers have a Content-Length; may_keep: the request may be repeated; times in seconds
        Gives   the response: read it by `pieces_of`, close it in any case
        Raises  Unreachable · UpstreamTimeout · BrokenAnswer; Forbidden: an address that may not be reached; whatever the body's iterator raises
        """
        session = self._session(may_keep)
        where = URL(url, encoded=True)
        name = f"{where.host}:{where.port}"
        self._check_literal(where.host or "")
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=connect_s, sock_read=None)
        try:
            async with asyncio.timeout(None if first_byte_s is None else connect_s + first_byte_s):
                response = await session.request(method, where, headers=headers, data=body, ssl=True if ssl_context is None else ssl_context,
                                                 allow_redirects=False, timeout=timeout, skip_auto_headers=OURS)
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as exc:
            if isinstance(refused := getattr(exc, "os_error", None), AddressRefused):
                raise Forbidden(f"{refused}.", code="address_not_allowed") from exc
            raise Unreachable(f"{name} cannot be reached: {exc}", phase="connect") from exc
        except TimeoutError as exc:
            raise UpstreamTimeout(f"{name} sent no answer in time", phase="first_byte") from exc
        except aiohttp.ClientError as exc:
            raise BrokenAnswer(f"{name} did not answer: {exc or type(exc).__name__}", phase="first_byte") from exc
        return response

    async def close(self) -> None:
        for session in (self._kept, self._fresh):
            if session is not None:
                await session.close()

    async def __aenter__(self) -> "HttpClient":
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()

    def _check_literal(self, host: str) -> None:
        """Refuse an address that stands in the URL itself: no name is looked up for it."""
        try:
            address = str(ipaddress.ip_address(host.partition("%")[0]))
        except ValueError:
            return
        if self._refusal_of is not None and (why := self._refusal_of(address)):
            raise Forbidden(f"{host} may not be reached: {why}.", code="address_not_allowed")

    def _session(self, may_keep: bool) -> aiohttp.ClientSession:
        """Give the session, made at its first use: most appliances never need one."""
        session = self._kept if may_keep else self._fresh
        if session is None:
            connector = aiohttp.TCPConnector(limit=MOST_CONNECTIONS, force_close=not may_keep, ttl_dns_cache=10,
                                             resolver=_Guarded(self._refusal_of) if self._refusal_of is not None else None)
            session = aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar(), auto_decompress=False, trust_env=False,
                                            raise_for_status=False, max_line_size=65_536, max_field_size=65_536,
                                            read_bufsize=self._read_bytes)
            if may_keep:
                self._kept = session
            else:
                self._fresh = session
        return session


async def pieces_of(response: aiohttp.ClientResponse, *, idle_s: float | None) -> AsyncIterator[bytes]:
    """Give an answer's body as it arrives, bytes as they were sent.

    Raises  UpstreamTimeout: nothing came for `idle_s` seconds · BrokenAnswer: it ended before its end
    """
    while True:
        try:
            async with asyncio.timeout(idle_s):
                piece = await response.content.readany()
        except TimeoutError as exc:
            raise UpstreamTimeout(f"the answer fell silent for {idle_s:g} s", phase="idle", has_begun=True) from exc
        except aiohttp.ClientError as exc:
            raise BrokenAnswer(f"the answer broke off: {exc or type(exc).__name__}", phase="broken", has_begun=True) from exc
        if not piece:
            return
        yield piece
