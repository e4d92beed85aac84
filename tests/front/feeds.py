"""A feed of server-sent events, read with the SSE client of OpenAI's SDK and by a strict parser."""

import json
import re
from collections.abc import AsyncIterator
from typing import Any

import httpx
from openai._streaming import SSEDecoder

PIECE = re.compile(rb"event: (\w+)\ndata: (\{[^\n]*\})\n\n")
Event = tuple[str, dict[str, Any]]


async def events_of(response: httpx.Response) -> AsyncIterator[Event]:
    """Yield the events that the SDK reads; a strict parser checks that nothing else is sent."""
    raw, count = bytearray(), 0

    async def bytes_of() -> AsyncIterator[bytes]:
        async for chunk in response.aiter_bytes():
            raw.extend(chunk)
            yield chunk

    async for sse in SSEDecoder().aiter_bytes(bytes_of()):
        count += 1
        by_hand = [(name.decode(), json.loads(data)) for name, data in PIECE.findall(bytes(raw))]
        assert by_hand[count - 1] == (sse.event, sse.json())
        yield sse.event or "", sse.json()
    assert PIECE.sub(b"", bytes(raw)) == b""
