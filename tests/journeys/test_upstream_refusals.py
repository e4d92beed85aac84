"""What a server did is told: closed without a byte, refused half a request, redirected, encoded its answer."""

import gzip
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from tests.fakes.early_server import EarlyServer
from tests.fakes.mirror import QUICK
from tests.journeys.running import Running, Start

LARGE = "word " * 1_200_000  # 6 MB
COMPLETION = json.dumps(
    {"model": "tiny", "choices": [{"index": 0, "message": {"role": "assistant", "content": "hi"}}]}
).encode()


def answer(status: int, body: bytes = b"", **headers: str) -> bytes:
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    return f"HTTP/1.1 {status} -\r\n{lines}Content-Length: {len(body)}\r\n\r\n".encode() + body


NOTHING = b""
TOO_LARGE = answer(413, b"<html>413 Request Entity Too Large</html>")
LIMITED = answer(429, b'{"error":{"message":"slow down"}}', Retry_After="7")
BUSY = answer(503, b"busy")
MOVED = answer(307, Location="http://admin:pw@10.1.2.3:99/v2/chat?token=abc")
SLASH = answer(308, Location="/v1/chat/completions/")
NOWHERE = answer(302)
PACKED = answer(200, gzip.compress(COMPLETION), Content_Type="application/json", Content_Encoding="gzip")
PACKED_EVENTS = answer(
    200, gzip.compress(b"data: [DONE]\n\n"), Content_Type="text/event-stream", Content_Encoding="gzip"
)
PACKED_ERROR = answer(400, gzip.compress(b'{"error":{"message":"no"}}'), Content_Encoding="gzip")
CUT_ERROR = b"HTTP/1.1 422 -\r\nContent-Length: 500\r\n\r\n{"

PATHS = {"openai": "/v1/chat/completions", "ollama": "/api/chat", "anthropic": "/v1/messages"}


async def ask(
    running: Running, dialect: str = "openai", *, stream: bool = False, text: str = "hello"
) -> httpx.Response:
    body = {"model": "tiny", "messages": [{"role": "user", "content": text}], "stream": stream}
    async with httpx.AsyncClient(base_url=running.base_url, timeout=20) as http:
        return await http.post(PATHS[dialect], json=body | {"max_tokens": 9})


def message(response: httpx.Response) -> str:
    error = response.json()["error"]
    return str(error if isinstance(error, str) else error["message"])


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("dialect", PATHS)
@pytest.mark.parametrize(
    ("reply", "size", "status", "text"),
    [
        (NOTHING, "small", 502, "the server closed the connection without a response"),
        (NOTHING, "large", 502, "the server closed the connection without a response"),
        (TOO_LARGE, "large", 413, "413 Request Entity Too Large"),
        (LIMITED, "large", 429, "Every backend that could be asked is full."),
        (MOVED, "small", 502, "The backend e0 redirects to '/v2/chat' of another address (status 307)."),
        (SLASH, "large", 502, "The backend e0 redirects to '/v1/chat/completions/' (status 308)."),
        (NOWHERE, "small", 502, "The backend e0 redirects (status 302). Redirects are not followed: "),
        (PACKED, "small", 502, "The backend e0 cannot be read: the response came in the encoding 'gzip'"),
        (PACKED_EVENTS, "small", 502, "The backend e0 cannot be read: the response came in the encoding"),
        (PACKED_ERROR, "small", 400, "(a body in the encoding 'gzip', which was not asked for)"),
        (CUT_ERROR, "small", 422, "The backend e0 refused the request with status 422."),
    ],
    ids=["nothing", "nothing, large", "413", "429", "307", "308", "302", "gzip", "events", "gzip 400", "cut"],
)
async def test_what_the_only_server_did_is_told(
    start: Start, reply: bytes, size: str, status: int, text: str, dialect: str, stream: bool
) -> None:
    with EarlyServer(reply) as server:
        running = await start(BACKENDS=f"e0={server.url}", **QUICK)
        response = await ask(running, dialect, stream=stream, text=LARGE if size == "large" else "hello")
    assert (response.status_code, response.json() and text in message(response)) == (status, True), (
        response.text
    )
    assert "10.1.2.3" not in response.text  # hosts are for operators
    assert response.headers.get("retry-after") == ("7" if status == 429 else None)
    [receipt] = running.appliance.receipts.latest(9)
    note = receipt.attempts[0].note
    assert reply is not MOVED or note == "redirects to 'http://10.1.2.3:99/v2/chat', not followed"


@pytest.mark.parametrize("ending", ["close", "linger", "hold"])
@pytest.mark.parametrize("size", ["small", "large"])
@pytest.mark.parametrize(
    ("reply", "is_answered"),
    [
        (NOTHING, True),
        (TOO_LARGE, False),
        (LIMITED, True),
        (BUSY, True),
        (MOVED, True),
        (PACKED, True),
        (PACKED_ERROR, False),
    ],
    ids=["nothing", "413", "429", "503", "307", "gzip", "gzip 400"],
)
async def test_another_server_is_asked_where_it_may_help(
    start: Start, reply: bytes, size: str, ending: str, is_answered: bool
) -> None:
    """A 413 or 400 is the same everywhere; all else may be this server's own."""
    if reply is NOTHING and ending == "hold":
        pytest.skip("silent, not closed")
    text = LARGE if size == "large" else "hello"
    other = EarlyServer(answer(200, COMPLETION), after_bytes=len(text), ending="linger")
    with EarlyServer(reply, ending=ending) as server, other:
        running = await start(BACKENDS=f"e0={server.url},e1={other.url}", LB_ENABLED="0", **QUICK)
        response = await ask(running, text=text)
        assert (response.status_code == 200) is is_answered, response.text
        assert (server.requests, other.requests) == (1, 1 if is_answered else 0)
    states: dict[str, Any] = {state.name: state.in_flight for state in running.appliance.router.states()}
    assert states == {"e0": 0, "e1": 0}


async def _pieces() -> AsyncIterator[bytes]:
    for _ in range(60):
        yield bytes(100_000)


@pytest.mark.parametrize("ending", ["close", "linger", "hold"])
@pytest.mark.parametrize("is_chunked", [False, True], ids=["length", "chunked"])
async def test_an_upload_that_is_passed_on_gets_the_status(
    start: Start, is_chunked: bool, ending: str
) -> None:
    """Each of six: the client is told that its connection ends, and sends the next one on another."""
    with EarlyServer(TOO_LARGE, after_bytes=100_000, ending=ending) as server:
        running = await start(BACKENDS=f"e0={server.url}", **QUICK)
        async with httpx.AsyncClient(base_url=running.base_url, timeout=20) as http:
            for _ in range(6):
                body = _pieces() if is_chunked else bytes(6_000_000)
                response = await http.post("/tokenize", content=body)
                assert (response.status_code, "413 Request" in response.text) == (413, True)
                assert response.headers["connection"] == "close"


async def test_a_failed_upload_shows_no_address(start: Start) -> None:
    with EarlyServer(NOTHING, after_bytes=100_000) as server:
        running = await start(BACKENDS=f"e0={server.url}", **QUICK)
        async with httpx.AsyncClient(base_url=running.base_url, timeout=20) as http:
            response = await http.post("/tokenize", content=bytes(6_000_000))
    assert response.status_code == 502
    assert message(response).startswith("e0 did not answer: e0 sent no valid response: ")
    assert server.url.removeprefix("http://") not in response.text
