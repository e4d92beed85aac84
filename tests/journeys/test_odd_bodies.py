"""Bodies that are written in an unusual way: what was decided is what the server gets, or they are refused."""

import gzip
import json
import zlib
from collections.abc import Callable

import httpx
import pytest

from tests.fakes.engine_server import EngineServer
from tests.fakes.mirror import QUICK
from tests.journeys.running import Running, Start

HELLO = [{"role": "user", "content": "Hello"}]
MESSAGES = b'"messages":[{"role":"user","content":"Hello"}]'


@pytest.mark.parametrize(
    "body",
    [
        b'\xef\xbb\xbf{"model":"short",%b}' % MESSAGES,
        b'{"mod\\u0065l":"short",%b}' % MESSAGES,
        b'{"model":"other","model":"short",%b}' % MESSAGES,
        b'{"model":"other","mod\\u0065l":"short",%b}' % MESSAGES,
        b'{"mod\\u0065l":"short","metadata":{"model":"nested"},%b}' % MESSAGES,
    ],
    ids=["byte order mark", "escaped", "twice", "twice, escaped", "escaped and nested"],
)
async def test_the_model_that_was_decided_is_the_one_that_is_sent(start: Start, body: bytes) -> None:
    async with EngineServer("vllm", models=("long",)) as engine:
        running = await start(BACKENDS=engine.url, MODEL_ALIASES="short=long", **QUICK)
        async with httpx.AsyncClient(base_url=running.v1) as http:
            response = await http.post("/chat/completions", content=body)
    assert (response.status_code, response.json()["model"]) == (200, "long")
    [asked] = engine.asked
    assert (asked["model"], asked["messages"]) == ("long", HELLO)
    assert asked.get("metadata", {"model": "nested"}) == {"model": "nested"}


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (json.dumps({"messages": HELLO}).encode("utf-16"), "The body is not valid JSON: it is not UTF-8."),
        (
            b'{"temperature":NaN,%b}' % MESSAGES,
            "The body is not valid JSON: NaN is not a number of JSON.",
        ),
        (
            b'{"temperature":1e999,%b}' % MESSAGES,
            "The body is not valid JSON: 1e999 is not a number of JSON.",
        ),
    ],
    ids=["utf-16", "nan", "infinite"],
)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/api/chat", "/v1/messages"])
async def test_what_readers_read_differently_is_refused(
    anyone: Running, path: str, body: bytes, text: str
) -> None:
    async with httpx.AsyncClient(base_url=anyone.base_url) as http:
        response = await http.post(path, content=body)
    assert (response.status_code, text in response.text) == (400, True)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/api/chat", "/api/embed", "/v1/messages"])
@pytest.mark.parametrize(
    ("pack", "encoding", "status"),
    [
        (gzip.compress, "gzip", 200),
        (zlib.compress, "deflate", 200),
        (bytes, "zstd", 415),
        (bytes, "br", 415),
        (bytes, "gzip", 400),
    ],
)
async def test_compressed_bodies_are_alike_at_every_address(
    anyone: Running, path: str, pack: Callable[[bytes], bytes], encoding: str, status: int
) -> None:
    body = json.dumps({"messages": HELLO, "input": "a", "stream": False, "max_tokens": 9, "model": "m"})
    async with httpx.AsyncClient(base_url=anyone.base_url) as http:
        response = await http.post(path, content=pack(body.encode()), headers={"Content-Encoding": encoding})
    assert response.status_code == status, response.text
    assert ("unsupported" in response.text or "not supported" in response.text) == (status == 415)
