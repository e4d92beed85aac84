"""HTTP for the sources that speak it.

Redirects are followed here and not by the client, so that credentials are sent to the first host only.
"""

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

MAX_REDIRECTS = 10
MAX_JSON_BYTES = 64 << 20
READ_BYTES = 1 << 20  # the library's buffer: large pieces cost less than many small ones
AGENT = ("User-Agent", "inference-appliance")


class WebClient:
    """Connections to web servers, for one download.

    Args:
        reach: Which addresses may be contacted.
        checks_names: Host names, also of redirects, must be listed in `reach`.
    """

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
        """Close the connections."""
        await self._client.close()

    async def json(self, url: str, *, what: str, secret: Mapping[str, str]) -> tuple[Any, Mapping[str, str]]:
        """Return a response's JSON and its headers.

        Args:
            url: Where it is.
            what: Begins the errors' texts.
            secret: Headers that only the first host may see.

        Raises:
            ApplianceError: `Interrupted` and `TimedOut` if another attempt may help.
        """
        async with self.get(url, what=what, secret=secret) as response:
            body = bytearray()
            async for piece in self._read(response, what):
                body += piece
                if len(body) > MAX_JSON_BYTES:
                    raise UpstreamFailed(f"{what}: the response is larger than {MAX_JSON_BYTES >> 20} MiB.")
            try:
                return jsons.loads(bytes(body)), response.headers
            except jsons.InvalidJson as exc:
                raise UpstreamFailed(f"{what}: the response is not JSON: {exc}.") from exc

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
        """Yield a file's bytes from `start` to before `end`, as they arrive, see `DownloadSource.pieces`.

        Args:
            url: Where it is.
            file: For its size, and for the errors.
            start: 0 or more.
            end: None = to its end.
            secret: Headers that only the first host may see.
            etag: The version that it must be, "" = any.
        """
        is_part = start > 0 or (end is not None and end != file.size_bytes)
        headers = {"Range": f"bytes={start}-{'' if end is None else end - 1}"} if is_part else {}
        async with self.get(url, what=file.path, headers=headers, secret=secret) as response:
            found = version_tag(response.headers)
            if etag and found and found != etag:
                raise SourceChanged(_changed(file.path))
            if is_part and response.status != 206:
                raise RangesUnsupported
            if is_part and not str(response.headers.get("Content-Range", "")).startswith(f"bytes {start}-"):
                raise UpstreamFailed(f"{file.path}: the server sent another part than the requested one.")
            length = 0
            async for piece in self._read(response, file.path):
                length += len(piece)
                yield piece
        wanted = file.size_bytes if end is None else end
        if wanted is not None and length < wanted - start:
            raise Interrupted(f"the response ended {wanted - start - length} bytes early")

    async def _read(self, response: Any, what: str) -> AsyncIterator[bytes]:
        try:
            async for piece in iter_body(response, idle_s=self._timeouts.idle_s):
                yield piece
        except UpstreamTimeout as exc:
            raise TimedOut(f"{what}: {exc.message}") from exc
        except WireError as exc:
            raise Interrupted(f"{what}: {exc.message}") from exc

    @asynccontextmanager
    async def get(
        self, url: str, *, what: str, headers: Mapping[str, str] | None = None, secret: Mapping[str, str]
    ) -> AsyncIterator[Any]:
        """Open the response to a GET, redirects followed; any status but 200 and 206 is an error."""
        origin = _origin(url)
        for _ in range(MAX_REDIRECTS):
            lines = [AGENT, ("Accept", "*/*"), ("Accept-Encoding", "identity"), *(headers or {}).items()]
            lines += secret.items() if _origin(url) == origin else ()
            response = await self._open(url, lines, what)
            try:
                if response.status in {301, 302, 303, 307, 308} and "Location" in response.headers:
                    url = _follow_redirect(url, str(response.headers["Location"]), what)
                    continue
                if response.status not in {200, 206}:
                    raise status_error(
                        response.status,
                        what,
                        name_host(self._proxies.find(url), urlsplit(url).hostname or ""),
                        response.headers,
                    )
                yield response
                return
            finally:
                response.close()
        raise UpstreamFailed(f"{what}: {urlsplit(url).hostname} redirects more than {MAX_REDIRECTS} times.")

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
            raise UpstreamFailed(f"{what}: the address is not valid: {exc}.") from exc


def name_host(proxy: Proxy | None, host: str) -> str:
    """Name a host for people, with the proxy that may have responded in its place."""
    return f"{host} (through {proxy})" if proxy is not None else host


def version_tag(headers: Mapping[str, str]) -> str:
    """Return what identifies this version of a file; "" = the server does not say."""
    if tag := headers.get("ETag", "").removeprefix("W/").strip('"'):
        return tag
    return f"modified:{changed}" if (changed := headers.get("Last-Modified", "")) else ""


def status_error(status: int, what: str, host: str, headers: Mapping[str, str]) -> ApplianceError:
    """Return the error that a status means.

    1. busy or broken              → another attempt may help
    2. no or wrong credentials
    3. refused
    4. not there
    5. another version than listed
    6. any other

    Args:
        status: Any but 200 and 206.
        what: Begins the error's text.
        host: Who sent it, see `name_host`.
        headers: May have Retry-After, in seconds.
    """
    if status in {408, 425, 429} or status >= 500:  # 1
        pause = headers.get("Retry-After", "")
        return Interrupted(
            f"{what}: {host} responded with {status}",
            retry_after_s=float(pause) if pause.isdecimal() else None,
        )
    if status == 401:  # 2
        return Forbidden(
            f"{what}: {host} requires credentials, or other ones (401). Use a token that may read it.",
            code="source_unauthenticated",
        )
    if status == 403:  # 3
        return Forbidden(
            f"{what}: {host} refuses access (403). The token must be allowed to read it; the terms of a "
            "gated model must be accepted there.",
            code="source_forbidden",
        )
    if status in {404, 410}:  # 4
        return NotFound(f"{what}: {host} does not have it ({status}).")
    if status in {412, 416}:  # 5
        return SourceChanged(_changed(what))
    return UpstreamFailed(f"{what}: {host} responded with {status}.")  # 6


def _changed(what: str) -> str:
    return f"{what} changed at its source during the download. Download it again."


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port


def _follow_redirect(url: str, location: str, what: str) -> str:
    """Return where a redirect leads, percent-encoded; raise if it leaves https."""
    # Bytes that are not UTF-8 arrive as surrogates, and are sent back as the bytes that they were.
    there = urljoin(url, quote(location, safe="%/:=&?~#+!$,;'@()*[]", errors="surrogateescape"))
    old, new = urlsplit(url).scheme, urlsplit(there).scheme
    if new not in {"http", "https"} or (old == "https" and new == "http"):
        raise Forbidden(
            f"{what}: {urlsplit(url).hostname} redirects from {old} to {new}, which is not followed.",
            code="unsafe_redirect",
        )
    return there
