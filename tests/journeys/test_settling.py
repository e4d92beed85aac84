"""Closing a request never fails: whatever breaks in the accounts, each client is answered, and nothing stays open."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest

from appliance.engines.upstream.exchange import UpstreamStream
from tests.fakes.engine_server import EngineServer
from tests.fakes.mirror import QUICK, Mirror
from tests.fakes.raw_server import Peer, RawServer
from tests.journeys.running import Running, Start, until

HELLO = [{"role": "user", "content": "hello"}]
Break = Callable[[Running, pytest.MonkeyPatch], None]


def boom(*_: Any, **__: Any) -> Any:
    raise ValueError("a fault of ours")


def _server(running: Running) -> Any:
    return running.appliance.router.backends()[0]


def receipt(running: Running, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(running.appliance.receipts, "add", boom)


def request_metrics(running: Running, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(running.appliance.metrics, "request_children", boom)


def engine_metrics(running: Running, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(running.appliance.metrics, "engine_children", boom)


def access_log(running: Running, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(running.appliance.pipeline.access_log, "write", boom)


def closing_the_stream(running: Running, patch: pytest.MonkeyPatch) -> None:
    closed = UpstreamStream.aclose

    async def aclose(self: UpstreamStream) -> None:
        was_closed = self._is_closed
        await closed(self)
        if was_closed:  # at its end it closes itself; the server's own close is meant
            boom()

    patch.setattr(UpstreamStream, "aclose", aclose)


def backend_time(running: Running, patch: pytest.MonkeyPatch) -> None:
    class Seconds:
        observe = staticmethod(boom)

    patch.setattr(_server(running).stats, "_seconds", Seconds)
    patch.setattr(running.appliance.metrics, "backend_errors", Seconds)


def latencies(running: Running, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(running.appliance.metrics.latencies, "add", boom)


def circuit(running: Running, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(_server(running).state, "record", boom)


STEPS = [
    receipt,
    request_metrics,
    engine_metrics,
    access_log,
    closing_the_stream,
    backend_time,
    latencies,
    circuit,
]
CHATS = {
    "chat": "/v1/chat/completions",
    "responses": "/v1/responses",
    "anthropic": "/v1/messages",
    "ollama": "/api/chat",
}
PATHS = {"fast": "/v1/chat/completions", "aiohttp": "/v1/chat/completions?q=1"}  # a query goes to aiohttp


@pytest.fixture
async def one(start: Start) -> AsyncIterator[tuple[Running, EngineServer, list[str]]]:
    """Return the appliance in front of one server with one slot, and the ids of its log lines."""
    async with EngineServer("openai", slots=1) as engine:
        running = await start(BACKENDS=f"e0={engine.url}", MAX_ALLOWED_REQUEST_QUEUE="1", **QUICK)
        lines: list[str] = []
        log = running.appliance.pipeline.access_log
        write = log.write

        def note(receipt: Any, **facts: Any) -> None:
            lines.append(receipt.id)
            write(receipt, **facts)

        log.write = note  # type: ignore[method-assign]
        yield running, engine, lines


async def _is_settled(running: Running) -> bool:
    pipeline, server = running.appliance.pipeline, _server(running)
    return await until(lambda: pipeline.in_flight == 0 == server.in_flight)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("step", STEPS)
async def test_a_broken_step_reaches_no_client(
    one: Any, monkeypatch: pytest.MonkeyPatch, step: Break, stream: bool, path: str
) -> None:
    running, _, lines = one
    step(running, monkeypatch)
    body = {"model": "tiny", "messages": HELLO, "stream": stream}
    limits = httpx.Limits(max_connections=1)  # the connection must take the next request
    async with httpx.AsyncClient(base_url=running.base_url, limits=limits, timeout=5) as http:
        for number in range(3):
            answer = await http.post(PATHS[path], json=body, headers={"x-request-id": f"r{number}"})
            assert answer.status_code == 200
            if stream:
                assert answer.text.endswith("data: [DONE]\n\n")
            else:
                assert answer.json()["choices"][0]["message"]["content"] == "Standing in."
    assert await _is_settled(running)
    assert step is access_log or lines == ["r0", "r1", "r2"]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("step", STEPS)
async def test_a_client_that_leaves_is_settled_all_the_same(
    one: Any, monkeypatch: pytest.MonkeyPatch, step: Break, path: str
) -> None:
    running, engine, lines = one
    step(running, monkeypatch)
    engine.token_s = 0.05
    body = {"model": "tiny", "messages": HELLO, "stream": True}
    async with httpx.AsyncClient(base_url=running.base_url, timeout=5) as http:
        async with http.stream("POST", PATHS[path], json=body, headers={"x-request-id": "left"}) as answer:
            await anext(answer.aiter_bytes())
        assert await _is_settled(running)
        assert step is access_log or await until(lambda: lines == ["left"])
        again = await http.post(PATHS[path], json=body | {"stream": False})
    assert again.status_code == 200


@pytest.mark.parametrize("query", ["", "?q=1"], ids=["fast", "aiohttp"])
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
async def test_all_steps_may_break_in_every_dialect(
    one: Any, monkeypatch: pytest.MonkeyPatch, stream: bool, query: str
) -> None:
    running, _, _ = one
    for step in STEPS:
        if step is not closing_the_stream:
            step(running, monkeypatch)
    body = {"model": "tiny", "messages": HELLO, "input": "hi", "stream": stream, "max_tokens": 9}
    limits = httpx.Limits(max_connections=1)
    async with httpx.AsyncClient(base_url=running.base_url, limits=limits, timeout=5) as http:
        for path in (*CHATS.values(), *CHATS.values()):
            answer = await http.post(path + query, json=body)
            assert (answer.status_code, "Stand" in answer.text) == (200, True), answer.text
    assert await _is_settled(running)


async def test_what_is_passed_on_is_settled_too(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    async with Mirror() as engine:
        running = await start(BACKENDS=f"e0={engine.url}", **QUICK)
        for step in STEPS:
            if step is not closing_the_stream:
                step(running, monkeypatch)
        limits = httpx.Limits(max_connections=1)
        async with httpx.AsyncClient(base_url=running.base_url, limits=limits, timeout=5) as http:
            for method in ("POST", "GET", "POST"):
                answer = await http.request(method, "/v1/rerank" if method == "POST" else "/props")
                assert answer.status_code == 200, answer.text
        assert await _is_settled(running)


def headers(patch: pytest.MonkeyPatch, running: Running) -> None:
    patch.setattr(running.appliance.pipeline, "response_headers", boom)
    patch.setattr(running.appliance.pipeline, "header_lines", boom)


def heads(patch: pytest.MonkeyPatch, running: Running) -> None:
    patch.setattr("appliance.front.server.fast_connection.render_response_head", boom)
    patch.setattr("appliance.front.server.server._set_headers", boom)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("fault", [headers, heads])
async def test_an_answer_that_cannot_be_sent_ends_the_connection(
    one: Any, fault: Callable[[pytest.MonkeyPatch, Running], None], stream: bool, path: str
) -> None:
    """A fault between handler and socket: an error or a close at once, one log line, nothing left open."""
    running, _, lines = one
    body = json.dumps({"model": "tiny", "messages": HELLO, "stream": stream}).encode()
    with pytest.MonkeyPatch.context() as patch:
        fault(patch, running)
        head = f"POST {PATHS[path]} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
        reader, writer = await asyncio.open_connection(*running.appliance.http_addresses[0])
        writer.write(head.encode() + body)
        try:
            out = await asyncio.wait_for(reader.read(), 5)
        except ConnectionResetError:
            out = b""
        writer.close()
        assert not out or b" 500 " in out.split(b"\r\n")[0]
        assert await _is_settled(running)
        assert await until(lambda: len(lines) >= 1)
    async with httpx.AsyncClient(base_url=running.base_url, timeout=5) as http:
        assert (await http.post(PATHS[path], content=body)).status_code == 200


ODD_USAGES: list[Any] = [
    5,
    [1],
    "many",
    {"prompt_tokens": -3, "completion_tokens": -4, "total_tokens": -7},
    {"prompt_tokens": "3", "completion_tokens": [], "total_tokens": {}},
    {"prompt_tokens": True, "completion_tokens": 1.5, "total_tokens": None},
    {"prompt_tokens": 10**15, "completion_tokens": 2**62, "total_tokens": 1e300},
    {"prompt_tokens_details": 5, "completion_tokens_details": "x"},
    {
        "prompt_tokens_details": {"cached_tokens": -9, "cache_write_tokens": "x"},
        "completion_tokens_details": {"reasoning_tokens": []},
    },
]
ODD_TIMINGS: list[Any] = [
    7,
    {"prompt_n": "x", "predicted_n": -1, "prompt_ms": True, "predicted_ms": 1e300, "cache_n": []},
    {"prompt_n": 2**62, "predicted_n": 2**62, "cache_n": 2**62, "prompt_ms": -5, "predicted_ms": "x"},
]
DIALECTS = CHATS | {"generate": "/api/generate"}


class OddCounters:
    """A server whose answers have these `usage` and `timings`."""

    def __init__(self, numbers: dict[str, Any]) -> None:
        self._numbers = numbers

    async def __call__(self, peer: Peer) -> None:
        while True:
            request = await peer.request()
            head, _, body = request.partition(b"\r\n\r\n")
            if not head.startswith(b"POST "):
                found = b'{"data":[{"id":"tiny"}]}' if head.startswith(b"GET /v1/models ") else b""
                self._say(peer, 200 if found else 404, "application/json", found)
                continue
            choice: dict[str, Any] = {"index": 0, "finish_reason": "stop"}
            if b'"stream":true' in body:
                chunk = {"model": "tiny", "choices": [choice | {"delta": {"content": "hi"}}], **self._numbers}
                text = b"data: " + json.dumps(chunk).encode() + b"\n\ndata: [DONE]\n\n"
                self._say(peer, 200, "text/event-stream", text)
            else:
                message = {"role": "assistant", "content": "hi"}
                whole = {"model": "tiny", "choices": [choice | {"message": message}], **self._numbers}
                self._say(peer, 200, "application/json", json.dumps(whole).encode())

    def _say(self, peer: Peer, status: int, kind: str, body: bytes) -> None:
        head = f"HTTP/1.1 {status} -\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
        peer.say(head.encode() + body)


@pytest.mark.parametrize(
    "numbers", [{"usage": odd} for odd in ODD_USAGES] + [{"timings": odd} for odd in ODD_TIMINGS], ids=str
)
async def test_counters_of_any_value_are_passed_over(start: Start, numbers: dict[str, Any]) -> None:
    """Whole and as a stream, in each dialect, fast and on aiohttp: the text arrives, all is counted."""
    async with RawServer(OddCounters(numbers)) as server:
        running = await start(BACKENDS=f"e0={server.address}", **QUICK)
        limits = httpx.Limits(max_connections=1)
        async with httpx.AsyncClient(base_url=running.base_url, limits=limits, timeout=5) as http:
            for path in DIALECTS.values():
                for stream in (False, True):
                    for query in ("", "?q=1"):
                        body = {"model": "tiny", "messages": HELLO, "input": "hi", "prompt": "hi"}
                        answer = await http.post(
                            path + query, json=body | {"stream": stream, "max_tokens": 9}
                        )
                        assert (answer.status_code, '"hi"' in answer.text) == (200, True), answer.text
                        assert "error" not in answer.text.replace('"error":null', ""), answer.text
            metrics = (await http.get("/metrics")).text
    assert await _is_settled(running)
    assert 'appliance_requests_total{route="/v1/messages",status="200"} 4.0' in metrics
    for receipt in running.appliance.receipts.latest(99):
        assert receipt.finish_label == "done"
        assert all(
            count is None or 0 <= count < 2**53
            for count in (receipt.prompt_tokens, receipt.completion_tokens)
        )
