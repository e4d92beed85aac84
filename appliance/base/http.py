"""A streaming HTTP client for requests outside the hot path: any method, no decoding, no redirects.

It wraps aiohttp's client, which no other module uses. The hot path has a pool of its own (`base/wire`),
which is several times as fast and can do less. Failures become the errors of `base/wire/types.py`, so that
callers handle one set of them.
"""

import asyncio
import ipaddress
import os
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import Any

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.client_proto import ResponseHandler
from yarl import URL

from appliance.base.errors import Forbidden
from appliance.base.proxies import Proxies, Proxy
from appliance.base.wire.types import BrokenResponse, Unreachable, UpstreamTimeout

MAX_CONNECTIONS = 512
UNREAD_BYTES = 65_536  # of a response, read after the connection was reset
NO_AUTO_HEADERS = ("Accept", "Accept-Encoding", "Content-Type", "User-Agent")  # the library would add them

# An IP address → why it must not be contacted, "" = it may be.
RefusalReason = Callable[[str], str]


class AddressRefused(OSError):
    """A name resolves to an address that is not allowed."""


class _GuardedResolver(AbstractResolver):
    """Resolves names, and refuses addresses that are not allowed, before a connection is made."""

    def __init__(self, refusal_reason: RefusalReason, inner: AbstractResolver | None = None) -> None:
        self._inner = inner or aiohttp.ThreadedResolver()
        self._refusal_reason = refusal_reason

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        found = await self._inner.resolve(host, port, family)
        for row in found:
            if why := self._refusal_reason(row["host"]):
                raise AddressRefused(f"Access to {host} is not allowed: {why}")
        return found

    async def close(self) -> None:
        await self._inner.close()


class _ResponseReader(ResponseHandler):
    """aiohttp's reader of responses, which also reads what a server sent before it reset the connection.

    A server that answers before it has read a whole request, as with 413, and closes, resets it.
    """

    def set_exception(self, exc: BaseException, *cause: BaseException) -> None:
        transport = self.transport
        if transport is not None and transport.is_closing():  # seen by the sender of the body first
            self._read_rest(transport)
        super().set_exception(exc, *cause)

    def connection_lost(self, exc: BaseException | None) -> None:
        if exc is not None and self.transport is not None:
            self._read_rest(self.transport)
        super().connection_lost(exc)

    def _read_rest(self, transport: asyncio.Transport) -> None:
        if transport.get_extra_info("sslcontext") is not None:
            return
        with suppress(OSError):
            data = os.read(transport.get_extra_info("socket").fileno(), UNREAD_BYTES)
            if data:
                self.data_received(data)


class HttpClient:
    """Two sets of connections: kept-alive ones for repeatable requests, fresh ones for all others.

    A kept-alive connection can close while the server may or may not have begun the request; a fresh one
    leaves no such doubt.

    Args:
        refusal_reason: Called for every address before it is connected to; None = all are allowed. For a
            request through a proxy the name is resolved here as well, but the proxy connects; names that only
            the proxy can resolve are left to it.
        read_bytes: How much of a response is buffered before its reader takes it.
        proxies: None = every host is contacted directly.
        resolver: Looks names up where addresses are checked; None = the system does.
    """

    def __init__(
        self,
        *,
        refusal_reason: RefusalReason | None = None,
        read_bytes: int = 65_536,
        proxies: Proxies | None = None,
        resolver: AbstractResolver | None = None,
    ) -> None:
        self._refusal_reason = refusal_reason
        self._resolver = resolver
        self._read_bytes = read_bytes
        self._proxies = proxies or Proxies()
        # By (connections are kept alive, through a proxy).
        self._sessions: dict[tuple[bool, bool], aiohttp.ClientSession] = {}

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
        """Send a request and wait for the head of its response.

        Args:
            method: Upper case.
            url: Percent-encoded; sent as it is.
            headers: All headers except Host.
            body: An iterator is sent as it yields, chunked unless the headers contain a Content-Length.
            ssl_context: None = verify against the system's CAs.
            is_repeatable: Doing it twice is harmless, so a kept-alive connection may be used.
            connect_s: Seconds to connect.
            first_byte_s: Seconds from then to the response head; None = no limit.

        Returns:
            The response: read it by `iter_body`, and close it in any case.

        Raises:
            Unreachable: The server was not reached.
            UpstreamTimeout: No response head in time.
            BrokenResponse: The response is not HTTP, or was cut off.
            Forbidden: An address that is not allowed.
            UpstreamFailed: The proxy cannot be used, or does not forward the request.
        """
        where = URL(url, encoded=True)
        self._check_literal(where.host or "")
        proxy = self._proxies.find(url)
        if proxy is not None and self._refusal_reason is not None:
            with suppress(OSError):  # a name that only the proxy can resolve is left to it
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
                    skip_auto_headers=NO_AUTO_HEADERS,
                    **_proxy_options(proxy, where, headers),
                )
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as exc:
            if isinstance(refused := getattr(exc, "os_error", None), AddressRefused):
                raise Forbidden(f"{refused}.", code="address_not_allowed") from exc
            raise Unreachable(f"{name} cannot be reached: {exc}", phase="connect") from exc
        except aiohttp.ClientHttpProxyError as exc:
            raise (proxy or Proxy("", "")).error_for(exc.status, where.host or "") from None
        except TimeoutError as exc:
            raise UpstreamTimeout(f"{name} sent no response in time", phase="first_byte") from exc
        except aiohttp.ClientError as exc:
            raise BrokenResponse(
                f"{name} sent no valid response: {exc or type(exc).__name__}", phase="first_byte"
            ) from exc
        if proxy is not None and response.status == 407:
            response.close()
            raise proxy.error_for(407, where.host or "")
        return response

    async def close(self) -> None:
        """Close every connection."""
        for session in self._sessions.values():
            await session.close()

    async def __aenter__(self) -> "HttpClient":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def _check_literal(self, host: str) -> None:
        """Refuse an address written in the URL itself: no resolver is asked for it."""
        try:
            address = str(ipaddress.ip_address(host.partition("%")[0]))
        except ValueError:
            return
        if self._refusal_reason is not None and (why := self._refusal_reason(address)):
            raise Forbidden(f"Access to {host} is not allowed: {why}.", code="address_not_allowed")

    def _session(self, is_repeatable: bool, is_proxied: bool) -> aiohttp.ClientSession:
        """Return the session, made at first use; the operator chose the proxy, so it is not checked."""
        session = self._sessions.get((is_repeatable, is_proxied))
        if session is None:
            is_guarded = self._refusal_reason is not None and not is_proxied
            connector = aiohttp.TCPConnector(
                limit=MAX_CONNECTIONS,
                force_close=not is_repeatable,
                ttl_dns_cache=10,
                resolver=_GuardedResolver(self._refusal_reason, self._resolver)
                if is_guarded and self._refusal_reason is not None
                else None,
            )
            reader: Any = partial(_ResponseReader, loop=asyncio.get_running_loop())
            connector._factory = reader  # there is no public way
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
            # Where the server closes without a response, aiohttp sends a PUT or DELETE again.
            session._retry_connection = is_repeatable  # there is no public way
            self._sessions[is_repeatable, is_proxied] = session
        return session


async def check_host(host: str, refusal_reason: RefusalReason) -> None:
    """Refuse a host if one of its addresses is not allowed.

    Args:
        host: A name or an address.
        refusal_reason: An IP address → why it is not allowed, "" = it is.

    Raises:
        Forbidden: With the reason.
        OSError: The name cannot be resolved.
    """
    for row in await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM):
        if why := refusal_reason(str(row[4][0])):
            raise Forbidden(f"Access to {host} is not allowed: {why}.", code="address_not_allowed")


def _proxy_options(proxy: Proxy | None, where: URL, headers: list[tuple[str, str]]) -> dict[str, Any]:
    """Return the library's options; credentials go to the proxy's tunnel (https) or request (http)."""
    if proxy is None:
        return {"headers": headers}
    if where.scheme == "https":
        return {"headers": headers, "proxy": proxy.url, "proxy_headers": proxy.authorization}
    return {"headers": [*headers, *proxy.authorization.items()], "proxy": proxy.url}


async def iter_body(response: aiohttp.ClientResponse, *, idle_s: float | None) -> AsyncIterator[bytes]:
    """Iterate over a response's body as it arrives, bytes as they were sent.

    Args:
        response: From `HttpClient.open`.
        idle_s: Longest silence in seconds; None = no limit.

    Raises:
        UpstreamTimeout: Nothing arrived for `idle_s` seconds.
        BrokenResponse: It ended too early.
    """
    while True:
        try:
            async with asyncio.timeout(idle_s):
                chunk = await response.content.readany()
        except TimeoutError as exc:
            raise UpstreamTimeout(
                f"the response was silent for {idle_s:g} s", phase="idle", has_begun=True
            ) from exc
        except aiohttp.ClientError as exc:
            raise BrokenResponse(
                f"the response was cut off: {exc or type(exc).__name__}", phase="broken", has_begun=True
            ) from exc
        if not chunk:
            return
        yield chunk
