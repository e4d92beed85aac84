"""Compressed request bodies: decoded within a bound, or refused in the same way everywhere."""

import gzip
import zlib

import pytest

from appliance.base.errors import Invalid, TooLarge
from appliance.front.pipeline.encoding import decode_body

RAW = zlib.compressobj(wbits=-zlib.MAX_WBITS)
BARE = RAW.compress(b"{}") + RAW.flush()


@pytest.mark.parametrize(
    ("body", "encoding"),
    [
        (b"{}", ""),
        (b"{}", "identity"),
        (gzip.compress(b"{}", mtime=0), "gzip"),
        (gzip.compress(b"{", mtime=0) + gzip.compress(b"}", mtime=0), " GZIP "),
        (gzip.compress(b"{}", mtime=0), "x-gzip"),
        (zlib.compress(b"{}"), "deflate"),
        (BARE, "deflate"),
    ],
)
async def test_a_body_is_decoded(body: bytes, encoding: str) -> None:
    assert await decode_body(body, encoding, 100) == b"{}"


async def test_no_body_has_no_encoding() -> None:
    assert await decode_body(b"", "zstd", 100) == b""


@pytest.mark.parametrize(
    ("body", "encoding", "text", "status"),
    [
        (b"{}", "gzip", "not what its Content-Encoding says", None),
        (gzip.compress(b"{}", mtime=0)[:-4], "gzip", "not what its Content-Encoding says", None),
        (gzip.compress(b"{}", mtime=0) + b"more", "gzip", "not what its Content-Encoding says", None),
        (b"{}", "zstd", "The Content-Encoding 'zstd' is not supported; use gzip, deflate or none.", 415),
        (b"{}", "br", "'br' is not supported", 415),
        (b"{}", "gzip, gzip", "'gzip, gzip' is not supported", 415),
    ],
)
async def test_what_cannot_be_decoded_is_refused(
    body: bytes, encoding: str, text: str, status: int | None
) -> None:
    with pytest.raises(Invalid, match=text) as caught:
        await decode_body(body, encoding, 100)
    assert caught.value.details.get("status") == status


async def test_a_body_that_grows_beyond_the_limit_is_refused() -> None:
    assert len(await decode_body(gzip.compress(b"x" * 100, mtime=0), "gzip", 100)) == 100
    for bomb in (
        gzip.compress(b"x" * 101, mtime=0),
        gzip.compress(b"x" * 60, mtime=0) * 2,
        gzip.compress(bytes(50_000_000)),
    ):
        with pytest.raises(TooLarge, match="100 bytes"):
            await decode_body(bomb, "gzip", 100)
