"""Request bodies that are compressed: gzip and deflate are decoded within a bound, others are refused."""

import asyncio
import zlib

from appliance.base.errors import Invalid, TooLarge

DECODED = frozenset({"gzip", "x-gzip", "deflate"})
# gzip or zlib, by its first bytes; deflate without either
_FOUND_OUT, _RAW = (
    zlib.MAX_WBITS | 32,
    -zlib.MAX_WBITS,
)


async def decode_body(body: bytes, encoding: str, limit_bytes: int) -> bytes:
    """Return a body without its Content-Encoding; in a thread, since a small one may become a large one.

    Raises:
        Invalid: The encoding is not known here (415), or the body is not what it says.
        TooLarge: It is larger than the limit.
    """
    name = encoding.strip().lower()
    if not body or name in {"", "identity"}:
        return body
    if name not in DECODED:
        raise Invalid(
            f"The Content-Encoding {encoding[:40]!r} is not supported; use gzip, deflate or none.",
            code="unsupported_encoding",
            details={"status": 415},
        )
    return await asyncio.to_thread(decompress, body, limit_bytes)


def decompress(body: bytes, limit_bytes: int) -> bytes:
    """Decompress gzip, in one member or several, or deflate, with zlib's head or without.

    Raises:
        Invalid: It is none of them, or not complete.
        TooLarge: It becomes larger than the limit.
    """
    try:
        return _decompress(body, limit_bytes, _FOUND_OUT)
    except zlib.error:
        pass
    try:
        return _decompress(body, limit_bytes, _RAW)
    except zlib.error:
        raise Invalid("The request body is not what its Content-Encoding says.") from None


def _decompress(body: bytes, limit_bytes: int, form: int) -> bytes:
    plain = b""
    while body:
        unpacker = zlib.decompressobj(form)
        plain += unpacker.decompress(body, limit_bytes + 1 - len(plain))
        if len(plain) > limit_bytes:
            raise TooLarge(f"The request body is larger than {limit_bytes} bytes (MAX_BODY_BYTES).")
        if not unpacker.eof:
            raise zlib.error("not complete")
        body = unpacker.unused_data
    return plain
