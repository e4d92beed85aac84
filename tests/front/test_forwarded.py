"""A request that is passed on: its target, its model, its body."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from appliance.base.errors import Invalid, TimedOut, TooLarge
from appliance.engines.types import RequestOptions
from appliance.front.passthrough.forwarded import WHOLE_BYTES, model_of, read_forwarded, target_of
from appliance.front.passthrough.upload import Upload
from appliance.front.settings import FrontSettings
from tests.front.requests import make_request


class Content:
    """A body in pieces; None = no more arrives."""

    def __init__(self, *pieces: bytes | Exception | None) -> None:
        self._pieces = list(pieces)

    async def readany(self) -> bytes:
        piece = self._pieces.pop(0) if self._pieces else b""
        if piece is None:
            await asyncio.Event().wait()
        if isinstance(piece, Exception):
            raise piece
        return piece or b""


class WebRequest:
    """The part of aiohttp's request that is used."""

    def __init__(
        self,
        *pieces: bytes | Exception | None,
        length: int | None = None,
        raw_path: str = "/x",
        content_type: str = "application/json",
    ) -> None:
        self.content = Content(*pieces)
        self.content_length = length
        self.body_exists = bool(pieces)
        self.raw_headers = ((b"Host", b"x"), (b"X-Two", "é".encode()))
        self.raw_path = raw_path
        self.headers = {"Content-Type": content_type}


async def forwarded(
    web_request: WebRequest,
    *,
    method: str = "POST",
    target: str = "/rerank",
    pin: str = "",
    billing: Any = None,
) -> Any:
    settings = FrontSettings(_env_file=None, max_body_bytes=2_000_000, body_timeout_s=0.05)
    request = make_request(method=method, path=target)
    options = RequestOptions(pin=pin, billing=billing)
    return await read_forwarded(web_request, request, target, options, settings)  # type: ignore[arg-type]


def upload(*pieces: bytes | Exception | None, limit_bytes: int = 10) -> Upload:
    return Upload(WebRequest(*pieces), limit_bytes=limit_bytes, patience_s=0.02)  # type: ignore[arg-type]


# ---- where to


@pytest.mark.parametrize(
    ("raw", "target"),
    [
        ("/a/b?x=%20&y", "/a/b?x=%20&y"),
        ("/a#part", "/a"),
        ("http://host/a/b?x=1", "/a/b?x=1"),
        ("http://host", "/"),
        ("/a?next=http://x/y", "/a?next=http://x/y"),
    ],
)
def test_the_target_is_path_and_query_unchanged(raw: str, target: str) -> None:
    assert target_of(WebRequest(raw_path=raw)) == target  # type: ignore[arg-type]


@pytest.mark.parametrize("raw", ["*", "a/b", "host:443"])
def test_an_address_that_is_not_a_path_is_refused(raw: str) -> None:
    with pytest.raises(Invalid, match="must be a path that begins with /") as caught:
        target_of(WebRequest(raw_path=raw))  # type: ignore[arg-type]
    assert caught.value.code == "invalid_address"


# ---- what


@pytest.mark.parametrize(
    ("method", "target", "pin", "is_work", "is_repeatable"),
    [
        ("POST", "/rerank", "", True, True),
        ("POST", "/rerank?x=1", "", True, True),
        ("POST", "/rerank", "b1", True, False),
        ("POST", "/slots/0", "", False, False),
        ("GET", "/props", "", False, True),
        ("DELETE", "/x", "", False, False),
    ],
)
async def test_only_work_and_safe_methods_may_be_repeated(
    method: str, target: str, pin: str, is_work: bool, is_repeatable: bool
) -> None:
    sent = await forwarded(WebRequest(), method=method, target=target, pin=pin)
    assert (sent.is_work, sent.is_repeatable, sent.body, sent.upload) == (is_work, is_repeatable, None, None)
    assert sent.fields == [("Host", "x"), ("X-Two", "é")]


async def test_a_small_body_is_read_and_may_name_a_model() -> None:
    sent = await forwarded(WebRequest(b'{"model":', b' "m"}', length=14))
    assert (sent.body, sent.model, sent.upload, sent.is_repeatable) == (b'{"model": "m"}', "m", None, True)


@pytest.mark.parametrize("length", [None, WHOLE_BYTES + 1])
async def test_a_large_or_unannounced_body_is_streamed(length: int | None) -> None:
    sent = await forwarded(WebRequest(b"ab", b"c", length=length), target="/rerank?model=q")
    assert (sent.body, sent.model, sent.is_repeatable, sent.has_begun_upload) == (None, "q", False, False)
    assert await sent.upload.read() == b"abc"
    assert sent.has_begun_upload


@pytest.mark.parametrize("length", [None, WHOLE_BYTES + 1])
async def test_billed_work_is_billed_by_the_model_of_its_body(length: int | None) -> None:
    body = WebRequest(b'{"model": "dear", ', b'"query": "q"}', length=length)
    request = await forwarded(body, target="/rerank?model=cheap", billing=object())
    assert (request.model, request.upload) == ("dear", None)


@pytest.mark.parametrize(
    "body",
    [
        b"\x1f\x8b\x08",
        '{"model": "dear"}'.encode("utf-16"),
        b'\xef\xbb\xbf{"model": "dear"}',
        b'{"model": "dear"} x',
        b"[1]",
        b'{"model": 1}',
    ],
)
async def test_billed_work_must_have_a_model_that_is_read_as_engines_do(body: bytes) -> None:
    target = "/rerank?model=cheap"
    with pytest.raises(Invalid):
        await forwarded(WebRequest(body, length=len(body)), target=target, billing=object())
    assert (await forwarded(WebRequest(body, length=len(body)), target=target)).model == "cheap"


@pytest.mark.parametrize("is_announced", [True, False])
async def test_a_form_names_its_model(is_announced: bool) -> None:
    body = b'--x\r\nContent-Disposition: form-data; name="model"\r\n\r\nm\r\n--x--\r\n'
    length = len(body) if is_announced else None
    sent = await forwarded(WebRequest(body, length=length, content_type="multipart/form-data; boundary=x"))
    assert (sent.model, sent.upload is None, sent.is_form_cut) == ("m", is_announced, False)


async def test_a_body_that_announces_too_many_bytes_is_not_read() -> None:
    with pytest.raises(TooLarge, match=r"2000000 bytes \(MAX_BODY_BYTES\)"):
        await forwarded(WebRequest(None, length=2_000_001))


@pytest.mark.parametrize(
    ("body", "target", "model"),
    [
        (b'{"model": "a"}', "/x?model=b", "a"),
        (b' {"model": 5}', "/x?model=b", "b"),
        (b"{broken", "/x?model=b", "b"),
        (b'["model"]', "/x", ""),
        (None, "/x?model=b&model=c", "b"),
        (None, "/x?a=1&model=b%2Fc", "b/c"),
        (b"model=a", "/x", ""),
        (None, "/x", ""),
    ],
)
def test_a_model_is_named_in_body_or_query(body: bytes | None, target: str, model: str) -> None:
    assert model_of(body, target) == model


# ---- a body on its way in


@pytest.mark.parametrize(
    ("pieces", "kind", "text"),
    [
        ((b"123456", b"78901"), TooLarge, r"larger than 10 bytes \(MAX_BODY_BYTES\)"),
        ((b"1", None), TimedOut, r"did not arrive in time \(BODY_TIMEOUT_S\)"),
        (
            (b"1", ValueError("bad chunk")),
            Invalid,
            "The request body cannot be read: its framing or encoding is malformed.",
        ),
    ],
)
async def test_a_failed_upload_reports_its_error(pieces: Any, kind: type[Exception], text: str) -> None:
    body = upload(*pieces)
    assert (body.has_begun, body.error) == (False, None)
    with pytest.raises(kind, match=text) as caught:
        await body.read()
    assert body.has_begun
    assert body.error is caught.value


async def test_an_upload_is_passed_on_unchanged() -> None:
    body = upload(b"123", b"4567890")
    pieces: AsyncIterator[bytes] = body.pieces()
    assert [piece async for piece in pieces] == [b"123", b"4567890"]
    assert body.error is None
