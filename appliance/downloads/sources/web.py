"""HTTP for the sources that speak it: redirects followed by hand, credentials left at home when a redirect leads elsewhere, parts asked for."""

from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import quote, urljoin, urlsplit

from appliance.base import jsons
from appliance.base.errors import ApplianceError, Forbidden, NotFound, TimedOut, UpstreamFailed
from appliance.base.http import HttpClient, iter_body
from appliance.base.proxies import Proxy
from appliance.base.reach import HostPolicy
from appliance.base.wire.types import UpstreamTimeout, WireError
from appliance.downloads.sources.contract import (
    Interrupted,
    RangesUnsupported,
    RemoteFile,
    SourceChanged,
    SourceContext,
    SourceTimeouts,
)

MOST_REDIRECTS = 10
MOST_JSON_BYTES = 64 << 20
READ_BYTES = 1 << 20  # the library's buffer: large pieces cost less than many small ones
AGENT = ("User-Agent", "inference-appliance")


class WebClient:
    """Connections to web servers, for one download."""

    def __init__(self, context: SourceContext, *, reach: HostPolicy, checks_names: bool = False) -> None:
        self._reach = reach
        self._checks_names = checks_names
        self._timeouts: SourceTimeouts = context.timeouts
        self._ssl = context.ssl_context
        self._proxies = context.proxies
        self._client = HttpClient(
            refusal_reason=None if reach.is_open else reach.refusal_reason,
            read_bytes=READ_BYTES,
            proxies=context.proxies,
        )

    async def close(self) -> None:
        await self._client.close()

    async def json(self, url: str, *, what: str, secret: Mapping[str, str]) -> tuple[Any, Mapping[str, str]]:
        """Give an answer's JSON and its headers. `secret`: headers that only the first host may see.

        Raises  ApplianceError, Interrupted and TimedOut among them
        """
        async with self.get(url, what=what, secret=secret) as answer:
            body = bytearray()
            async for piece in self._read(answer, what):
                body += piece
                if len(body) > MOST_JSON_BYTES:
                    raise UpstreamFailed(f"{what}: the answer is larger than {MOST_JSON_BYTES >> 20} MiB.")
            try:
                return jsons.loads(bytes(body)), answer.headers
            except jsons.InvalidJson as exc:
                raise UpstreamFailed(f"{what}: the answer is no JSON: {exc}.") from exc

    async def file(
        self,
        url: str,
        file: RemoteFile,
        start: int,
        end: int | None,
        *,
        secret: Mapping[str, str],
        etag: str = "",
    ) -> AsyncGenerator[bytes]:
        """Give a file's bytes from `start` to before `end`, as they arrive; the source's promise (contract.Source.pieces)."""
        is_part = start > 0 or (end is not None and end != file.size_bytes)
        headers = {"Range": f"bytes={start}-{'' if end is None else end - 1}"} if is_part else {}
        async with self.get(url, what=file.path, headers=headers, secret=secret) as answer:
            found = version_tag(answer.headers)
            if etag and found and found != etag:
                raise SourceChanged(
                    f"{file.path} has changed at its source while it was fetched; fetch it again."
                )
            if is_part and answer.status != 206:
                raise RangesUnsupported
            if is_part and not str(answer.headers.get("Content-Range", "")).startswith(f"bytes {start}-"):
                raise UpstreamFailed(f"{file.path}: the server gave another part than the one asked for.")
            length = 0
            async for piece in self._read(answer, file.path):
                length += len(piece)
                yield piece
        wanted = file.size_bytes if end is None else end
        if wanted is not None and length < wanted - start:
            raise Interrupted(f"the answer ended {wanted - start - length} bytes early")

    async def _read(self, answer: Any, what: str) -> AsyncIterator[bytes]:
        try:
            async for piece in iter_body(answer, idle_s=self._timeouts.idle_s):
                yield piece
        except UpstreamTimeout as exc:
            raise TimedOut(f"{what}: {exc.message}") from exc
        except WireError as exc:
            raise Interrupted(f"{what}: {exc.message}") from exc

    @asynccontextmanager
    async def get(
        self, url: str, *, what: str, headers: Mapping[str, str] | None = None, secret: Mapping[str, str]
    ) -> AsyncIterator[Any]:
        """Open the answer to a GET, redirects followed; only 200 and 206 are given."""
        origin = _origin(url)
        for _ in range(MOST_REDIRECTS):
            lines = [AGENT, ("Accept", "*/*"), ("Accept-Encoding", "identity"), *(headers or {}).items()]
            lines += secret.items() if _origin(url) == origin else ()
            answer = await self._open(url, lines, what)
            try:
                if answer.status in {301, 302, 303, 307, 308} and "Location" in answer.headers:
                    url = _moved(url, str(answer.headers["Location"]), what)
                    continue
                if answer.status not in {200, 206}:
                    raise status_error(
                        answer.status,
                        what,
                        name_host(self._proxies.find(url), urlsplit(url).hostname or ""),
                        answer.headers,
                    )
                yield answer
                return
            finally:
                answer.close()
        raise UpstreamFailed(f"{what}: {urlsplit(url).hostname} redirects more than {MOST_REDIRECTS} times.")

    async def _open(self, url: str, lines: list[tuple[str, str]], what: str) -> Any:
        if self._checks_names:
            self._reach.check_host(urlsplit(url).hostname or "")
        try:
            return await self._client.open(
                "GET",
                url,
                headers=lines,
                body=None,
                ssl_context=self._ssl,
                is_repeatable=True,
                connect_s=self._timeouts.connect_s,
                first_byte_s=self._timeouts.first_byte_s,
            )
        except UpstreamTimeout as exc:
            raise TimedOut(f"{what}: {exc.message}") from exc
        except WireError as exc:
            raise Interrupted(f"{what}: {exc.message}") from exc
        except ValueError as exc:
            raise UpstreamFailed(f"{what}: the address is none that can be asked: {exc}.") from exc


def name_host(proxy: Proxy | None, host: str) -> str:
    """Name a host for people, with the proxy that may be the one that answers in its place."""
    return f"{host} (through {proxy})" if proxy is not None else host


def version_tag(headers: Mapping[str, str]) -> str:
    """Give what tells this version of a file from another; "" = the server says nothing."""
    if tag := headers.get("ETag", "").removeprefix("W/").strip('"'):
        return tag
    return f"modified:{changed}" if (changed := headers.get("Last-Modified", "")) else ""


def status_error(status: int, what: str, host: str, headers: Mapping[str, str]) -> ApplianceError:
    """Say what a status means: 1. busy or broken: again later   2. no or wrong credentials   3. refused   4. not there   5. others."""
    if status in {408, 425, 429} or status >= 500:  # 1
        pause = headers.get("Retry-After", "")
        return Interrupted(
            f"{what}: {host} answers {status}", retry_after_s=float(pause) if pause.isdecimal() else None
        )
    if status == 401:  # 2
        return Forbidden(
            f"{what}: {host} wants credentials, or other ones (401). Give a token that may read it.",
            code="source_unauthenticated",
        )
    if status == 403:  # 3
        return Forbidden(
            f"{what}: {host} refuses it (403). The token must be allowed to read it; a gated model's terms must be accepted there.",
            code="source_forbidden",
        )
    if status in {404, 410}:  # 4
        return NotFound(f"{what}: {host} does not have it ({status}).")
    if status in {412, 416}:
        return SourceChanged(f"{what} has changed at its source while it was fetched; fetch it again.")
    return UpstreamFailed(f"{what}: {host} answers {status}.")  # 5


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port


def _moved(url: str, location: str, what: str) -> str:
    """Give where a redirect leads, written as a server can be asked; raise when it leaves the secured path."""
    there = urljoin(url, quote(location, safe="%/:=&?~#+!$,;'@()*[]"))
    old, new = urlsplit(url).scheme, urlsplit(there).scheme
    if new not in {"http", "https"} or (old == "https" and new == "http"):
        raise Forbidden(
            f"{what}: {urlsplit(url).hostname} redirects from {old} to {new}; that is not followed.",
            code="unsafe_redirect",
        )
    return there
