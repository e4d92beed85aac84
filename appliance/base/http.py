"""HTTP to a server as it comes, for what is not hot: any method, bodies streamed both ways, nothing decoded, nothing followed.

aiohttp's client, and the only place where it enters. The hot path has a pool of its own (wire.py), which is
several times as fast and can do less. Failures are told in the wire's words, so that callers have one table
of them.
"""

import asyncio
import ipaddress
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from types import TracebackType
from typing import Any

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from appliance.base.errors import Forbidden
from appliance.base.proxies import Proxies, Proxy
from appliance.base.wire.types import BrokenResponse, Unreachable, UpstreamTimeout

MAX_CONNECTIONS = 512
OURS = ("Accept", "Accept-Encoding", "Content-Type", "User-Agent")  # what the library would add by itself


RefusalReason = Callable[[str], str]  # an IP address → why it may not be reached, "" = it may


class AddressRefused(OSError):
    """A name leads to an address that may not be reached."""


class _Guarded(AbstractResolver):
    """Looks names up, and refuses one that leads to an address that may not be reached: what is connected to is what was looked at."""

    def __init__(self, refusal_reason: RefusalReason) -> None:
        self._inner = aiohttp.ThreadedResolver()
        self._refusal_reason = refusal_reason

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        found = await self._inner.resolve(host, port, family)
        for row in found:
            if why := self._refusal_reason(row["host"]):
                raise AddressRefused(f"{host} may not be reached: {why}")
        return found

    async def close(self) -> None:
        await self._inner.close()


class HttpClient:
    """Two sets of connections: kept ones for requests that may be repeated, fresh ones for those that may not.

    A kept connection can die with a request on it that the server may or may not have begun; a fresh one
    leaves no such doubt.

    Takes   refusal_of: asked about every address before it is connected to; None = all may be reached. What is asked through a proxy is
            looked up here as well, but connected to by the proxy; names that only the proxy knows are its to
            judge
            read_bytes: what is read of an answer before its reader has taken it; proxies: None = every host
                is asked directly
    """

    def __init__(
        self,
        *,
        refusal_reason: RefusalReason | None = None,
        read_bytes: int = 65_536,
        proxies: Proxies | None = None,
    ) -> None:
        self._refusal_reason = refusal_reason
        self._read_bytes = read_bytes
        self._proxies = proxies or Proxies()
        self._sessions: dict[
            tuple[bool, bool], aiohttp.ClientSession
        ] = {}  # (connections are kept, through a proxy)

    async def open(
        self,
        method: str,
        url: str,
        *,
        headers: list[tuple[str, str]],
        body: bytes | AsyncIterator[bytes] | None,
        ssl_context: ssl.SSLContext | None = None,
        is_repeatable: bool,
        connect_s: float,
        first_byte_s: float | None,
    ) -> aiohttp.ClientResponse:
        """Send a request and wait for the head of its answer.

        Takes   url: percent-encoded, sent as it is; headers: all that are to be sent, Host apart; body: an iterator is sent as it comes,
                chunked unless the headers have a Content-Length; may_keep: the request may be repeated; times
                in seconds
        Gives   the response: read it by `pieces_of`, close it in any case
        Raises  Unreachable · UpstreamTimeout · BrokenAnswer; Forbidden: an address that may not be reached;
        UpstreamFailed: a proxy that
                cannot be used, or does not pass on; whatever the body's iterator raises
        """
        where = URL(url, encoded=True)
        self._check_literal(where.host or "")
        proxy = self._proxies.of(url)
        if proxy is not None and self._refusal_reason is not None:
            with suppress(OSError):  # a name that only the proxy knows is its to judge
                await check_host(where.host or "", self._refusal_reason)
        session = self._session(is_repeatable, proxy is not None)
        name = f"{where.host}:{where.port}" + (f" (through {proxy})" if proxy is not None else "")
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=connect_s, sock_read=None)
        try:
            async with asyncio.timeout(None if first_byte_s is None else connect_s + first_byte_s):
                response = await session.request(
                    method,
                    where,
                    data=body,
                    ssl=True if ssl_context is None else ssl_context,
                    allow_redirects=False,
                    timeout=timeout,
                    skip_auto_headers=OURS,
                    **_through(proxy, where, headers),
                )
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as exc:
            if isinstance(refused := getattr(exc, "os_error", None), AddressRefused):
                raise Forbidden(f"{refused}.", code="address_not_allowed") from exc
            raise Unreachable(f"{name} cannot be reached: {exc}", phase="connect") from exc
        except aiohttp.ClientHttpProxyError as exc:
            raise (proxy or Proxy("", "")).refusal(exc.status, where.host or "") from None
        except TimeoutError as exc:
            raise UpstreamTimeout(f"{name} sent no answer in time", phase="first_byte") from exc
        except aiohttp.ClientError as exc:
            raise BrokenResponse(
                f"{name} did not answer: {exc or type(exc).__name__}", phase="first_byte"
            ) from exc
        if proxy is not None and response.status == 407:
            response.close()
            raise proxy.refusal(407, where.host or "")
        return response

    async def close(self) -> None:
        for session in self._sessions.values():
            await session.close()

    async def __aenter__(self) -> "HttpClient":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def _check_literal(self, host: str) -> None:
        """Refuse an address that stands in the URL itself: no name is looked up for it."""
        try:
            address = str(ipaddress.ip_address(host.partition("%")[0]))
        except ValueError:
            return
        if self._refusal_reason is not None and (why := self._refusal_reason(address)):
            raise Forbidden(f"{host} may not be reached: {why}.", code="address_not_allowed")

    def _session(self, is_repeatable: bool, is_proxied: bool) -> aiohttp.ClientSession:
        """Give the session, made at its first use: most appliances never need one. A proxy is the operator's, wherever it is."""
        session = self._sessions.get((is_repeatable, is_proxied))
        if session is None:
            is_guarded = self._refusal_reason is not None and not is_proxied
            connector = aiohttp.TCPConnector(
                limit=MAX_CONNECTIONS,
                force_close=not is_repeatable,
                ttl_dns_cache=10,
                resolver=_Guarded(self._refusal_reason)
                if is_guarded and self._refusal_reason is not None
                else None,
            )
            session = aiohttp.ClientSession(
                connector=connector,
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                trust_env=False,
                raise_for_status=False,
                max_line_size=65_536,
                max_field_size=65_536,
                read_bufsize=self._read_bytes,
            )
            self._sessions[is_repeatable, is_proxied] = session
        return session


async def check_host(host: str, refusal_reason: RefusalReason) -> None:
    """Refuse a host of whose addresses one may not be reached, as far as they are known here.

    Raises  Forbidden; OSError: the name is not known
    """
    for row in await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM):
        if why := refusal_reason(str(row[4][0])):
            raise Forbidden(f"{host} may not be reached: {why}.", code="address_not_allowed")


def _through(proxy: Proxy | None, where: URL, headers: list[tuple[str, str]]) -> dict[str, Any]:
    """Give what tells the library of a proxy, and the headers: its credentials are for the tunnel alone, or are sent with the request."""
    if proxy is None:
        return {"headers": headers}
    if where.scheme == "https":
        return {"headers": headers, "proxy": proxy.url, "proxy_headers": proxy.authorization}
    return {"headers": [*headers, *proxy.authorization.items()], "proxy": proxy.url}


async def iter_body(response: aiohttp.ClientResponse, *, idle_s: float | None) -> AsyncIterator[bytes]:
    """Give an answer's body as it arrives, bytes as they were sent.

    Raises  UpstreamTimeout: nothing came for `idle_s` seconds · BrokenAnswer: it ended before its end
    """
    while True:
        try:
            async with asyncio.timeout(idle_s):
                piece = await response.content.readany()
        except TimeoutError as exc:
            raise UpstreamTimeout(
                f"the answer fell silent for {idle_s:g} s", phase="idle", has_begun=True
            ) from exc
        except aiohttp.ClientError as exc:
            raise BrokenResponse(
                f"the answer broke off: {exc or type(exc).__name__}", phase="broken", has_begun=True
            ) from exc
        if not piece:
            return
        yield piece
