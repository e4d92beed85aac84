"""HTTP for sources: what each status means, and responses that are not what was requested."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import unquote_to_bytes

import pytest
from aiohttp import web

from appliance.base.errors import ApplianceError, Forbidden, NotFound, TimedOut, UpstreamFailed
from appliance.base.reach import HostPolicy
from appliance.downloads.sources import web as web_module
from appliance.downloads.sources.contract import Interrupted, RangesUnsupported, RemoteFile, SourceChanged
from appliance.downloads.sources.web import WebClient, status_error, version_tag
from tests.downloads.pages import Page, serving_pages, source_context
from tests.fakes.raw_server import Peer, RawServer

FILE = RemoteFile("model.bin", 10)


@asynccontextmanager
async def client(page: Page) -> AsyncIterator[tuple[WebClient, str]]:
    async with serving_pages({"/x": page}) as url:
        found = WebClient(source_context(""), reach=HostPolicy.unrestricted())
        try:
            yield found, f"{url}/x"
        finally:
            await found.close()


async def fetch(found: WebClient, url: str, start: int = 0, end: int | None = None, etag: str = "") -> bytes:
    return b"".join([piece async for piece in found.file(url, FILE, start, end, secret={}, etag=etag)])


@pytest.mark.parametrize(
    ("status", "kind", "text"),
    [
        (401, Forbidden, "m: h requires credentials, or other ones (401). Use a token that may read it."),
        (403, Forbidden, "m: h refuses access (403)."),
        (404, NotFound, "m: h does not have it (404)."),
        (410, NotFound, "m: h does not have it (410)."),
        (408, Interrupted, "m: h responded with 408"),
        (425, Interrupted, "m: h responded with 425"),
        (429, Interrupted, "m: h responded with 429"),
        (503, Interrupted, "m: h responded with 503"),
        (412, SourceChanged, "m changed at its source during the download. Download it again."),
        (416, SourceChanged, "m changed at its source during the download. Download it again."),
        (418, UpstreamFailed, "m: h responded with 418."),
    ],
)
def test_a_status_has_its_error(status: int, kind: type[ApplianceError], text: str) -> None:
    error = status_error(status, "m", "h", {"Retry-After": "7"})
    assert (type(error), error.message.startswith(text)) == (kind, True)
    assert error.retry_after_s == (7.0 if kind is Interrupted else None)
    assert error.retryable == (kind is Interrupted)


@pytest.mark.parametrize(
    ("headers", "tag"),
    [
        ({"ETag": 'W/"abc"'}, "abc"),
        ({"ETag": '"abc"', "Last-Modified": "x"}, "abc"),
        ({"Last-Modified": "yesterday"}, "modified:yesterday"),
        ({}, ""),
    ],
)
def test_a_version_is_an_etag_or_a_date(headers: dict[str, str], tag: str) -> None:
    assert version_tag(headers) == tag


@pytest.mark.parametrize(
    ("headers", "status", "body", "kind", "text"),
    [
        ({"Content-Range": "bytes 3-9/10"}, 206, b"x" * 7, UpstreamFailed, "another part than the requested"),
        ({}, 200, b"x" * 10, RangesUnsupported, "^$"),
        ({"ETag": '"new"'}, 206, b"x", SourceChanged, "model.bin changed at its source"),
        ({"Content-Range": "bytes 2-9/10"}, 206, b"xyz", Interrupted, "ended 5 bytes early"),
    ],
)
async def test_an_odd_part_is_refused(
    headers: dict[str, str], status: int, body: bytes, kind: type[Exception], text: str
) -> None:
    async def page(_: web.Request) -> web.Response:
        return web.Response(status=status, headers=headers, body=body)

    async with client(page) as (found, url):
        with pytest.raises(kind, match=text):
            await fetch(found, url, 2, None, etag="old")


@pytest.mark.parametrize(
    ("body", "text"),
    [(b"{", "the response is not JSON"), (b"[" + b" " * 100, "the response is larger than 0 MiB")],
)
async def test_json_that_is_none_or_too_large_is_refused(
    monkeypatch: pytest.MonkeyPatch, body: bytes, text: str
) -> None:
    monkeypatch.setattr(web_module, "MAX_JSON_BYTES", 50)

    async def page(_: web.Request) -> web.Response:
        return web.Response(body=body)

    async with client(page) as (found, url):
        with pytest.raises(UpstreamFailed, match=text):
            await found.json(url, what="ns/repo", secret={})


async def test_a_server_that_never_answers_times_out() -> None:
    found = WebClient(source_context(""), reach=HostPolicy.unrestricted())
    found._timeouts = web_module.SourceTimeouts(connect_s=0.1, first_byte_s=0.1)

    async def page(_: web.Request) -> web.Response:
        await asyncio.sleep(5)
        return web.Response()

    async with serving_pages({"/x": page}) as url:
        with pytest.raises(TimedOut, match=r"^model\.bin: "):
            await fetch(found, f"{url}/x")
        await found.close()


@pytest.mark.parametrize(
    ("location", "kind", "text"),
    [("/x", UpstreamFailed, "redirects more than 10 times"), ("ftp://h/x", Forbidden, "from http to ftp")],
)
async def test_redirects_end(location: str, kind: type[Exception], text: str) -> None:
    async def page(_: web.Request) -> web.Response:
        return web.Response(status=302, headers={"Location": location})

    async with client(page) as (found, url):
        with pytest.raises(kind, match=text):
            await fetch(found, url)


@pytest.mark.parametrize("path", ["/caf\udce9", "/caf\u00e9", "/a\udcff\udcfeb?x=\udc80"])
async def test_odd_bytes_of_a_redirect_are_sent_back(path: str) -> None:
    """Latin-1, for one; each byte of the location comes back percent-encoded."""
    raw = path.encode("utf-8", "surrogateescape")
    asked: list[bytes] = []

    async def script(peer: Peer) -> None:
        asked.append((await peer.head()).split()[1])
        if len(asked) == 1:
            peer.say(b"HTTP/1.1 302 Found\r\nLocation: " + raw + b"\r\nContent-Length: 0\r\n\r\n")
        else:
            peer.say(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n0123456789")

    async with RawServer(script) as server:
        found = WebClient(source_context(""), reach=HostPolicy.unrestricted())
        assert await fetch(found, f"{server.address}/x") == b"0123456789"
        await found.close()
    assert unquote_to_bytes(asked[1]) == raw


async def test_an_address_that_is_not_valid_is_refused() -> None:
    found = WebClient(source_context(""), reach=HostPolicy.unrestricted())

    async def broken(*_: Any, **__: Any) -> Any:
        raise ValueError("no host")

    found._client.open = broken  # type: ignore[method-assign]
    with pytest.raises(UpstreamFailed, match="the address is not valid: no host"):
        await fetch(found, "http://x")
    await found.close()
