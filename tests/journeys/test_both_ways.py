"""Hot requests run inside callbacks, or each in a task: clients, log lines and accounts cannot tell which.

Recorded answers of engines, whole and as streams, right and broken, cut at random, over real sockets.
"""

import asyncio
import gc
import json
import random
import re
import socket
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import pytest

from appliance.base.inline import every_coroutine_in_a_task
from tests.engines.upstream_answers import ALL
from tests.fakes.mirror import QUICK
from tests.fakes.raw_server import Peer, RawServer
from tests.journeys.running import Running, Start, until

OK = "HTTP/1.1 200 OK\r\n"
CHOICE: dict[str, Any] = {
    "index": 0,
    "message": {"role": "assistant", "content": "hi"},
    "finish_reason": "stop",
}
REPLY: dict[str, Any] = {
    "id": "c",
    "object": "chat.completion",
    "created": 1,
    "model": "tiny",
    "choices": [CHOICE],
    "usage": {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7},
}


def whole(value: Any, status: str = OK, more: str = "", cut: int = 0) -> bytes:
    body = value if isinstance(value, bytes) else json.dumps(value).encode()
    head = f"{status}Content-Type: application/json\r\nContent-Length: {len(body)}\r\n{more}\r\n"
    return head.encode() + (body[:-cut] if cut else body)


def with_message(**fields: Any) -> dict[str, Any]:
    return REPLY | {"choices": [CHOICE | {"message": {"role": "assistant", **fields}}]}


def chunked(stream: bytes, end: bytes = b"0\r\n\r\n") -> bytes:
    """A stream in chunks of other sizes than its events."""
    chunks = [b"%x\r\n%b\r\n" % (len(part), part) for part in re.findall(rb"(?s).{1,300}", stream)]
    return f"{OK}Content-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n".encode() + b"".join(
        [*chunks, end]
    )


CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}
# Each is (the bytes, whether the server closes then).
WHOLE: dict[str, tuple[bytes, bool]] = {
    "plain": (whole(REPLY), False),
    "closing": (whole(REPLY, more="Connection: close\r\n"), True),
    "large": (whole(with_message(content="x" * 400_000)), False),
    "tool": (whole(with_message(content=None, tool_calls=[CALL])), False),
    "parts": (whole(with_message(content=[{"type": "text", "text": "hi"}])), False),
    "reasoning": (whole(with_message(content="hi", reasoning_content="hm")), False),
    "error object": (whole({"error": {"message": "no", "type": "x"}}), False),
    "no json": (whole(b"<html>"), False),
    "empty": (whole(b""), False),
    "cut": (whole(REPLY, cut=9), True),
    "400": (whole({"error": {"message": "bad", "type": "x"}}, "HTTP/1.1 400 Bad\r\n"), False),
    "429": (whole({"error": {"message": "slow"}}, "HTTP/1.1 429 Slow\r\n"), False),
    "500": (whole({"error": {"message": "sick"}}, "HTTP/1.1 500 Sick\r\n"), False),
    "no http": (b"garbage\r\n\r\n", True),
    "nothing": (b"", True),
    "half a head": (b"HTTP/1.1 200 O", True),
    "encoded": (whole(b"\x1f\x8b", more="Content-Encoding: gzip\r\n"), False),
    "interim": (b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + whole(REPLY), False),
    "deep": (whole(b'{"model":"tiny","choices":' + b"[" * 3000 + b"]" * 3000 + b"}"), False),
}
STREAMS: dict[str, tuple[bytes, bool]] = {
    **{name: (chunked(stream), False) for name, stream in ALL.items()},
    **{f"{name}, closed": (chunked(stream, b""), True) for name, stream in ALL.items()},
    **{f"{name}, cut": (chunked(stream)[: len(stream) // 2], True) for name, stream in ALL.items()},
    **{name: WHOLE[name] for name in ("plain", "error object", "no json", "400", "500", "nothing", "cut")},
    "encoded": WHOLE["encoded"],
}


@dataclass
class Recorded:
    """Answers a chat with what its prompt names, in the pieces that it names."""

    answers: dict[str, tuple[bytes, bool]] = field(default_factory=lambda: WHOLE | STREAMS)

    async def __call__(self, peer: Peer) -> None:
        while True:
            request = await peer.request()
            head, _, body = request.partition(b"\r\n\r\n")
            if not head.startswith(b"POST "):
                found = b'{"data":[{"id":"tiny"}]}' if head.startswith(b"GET /v1/models ") else b""
                peer.say(whole(found, OK if found else "HTTP/1.1 404 None\r\n"))
                continue
            prompt = json.loads(body)["messages"][-1]["content"]
            name, seed = (prompt if isinstance(prompt, str) else prompt[0]["text"]).split(":")
            stream = b'"stream":true' in body.replace(b'": ', b'":')
            answer, closes = (STREAMS if stream and name in STREAMS else WHOLE)[name]
            chance = random.Random(seed)
            cuts = sorted(chance.randrange(len(answer) + 1) for _ in range(chance.choice([0, 1, 3, 12])))
            for begin, end in zip([0, *cuts], [*cuts, len(answer)], strict=True):
                peer.say(answer[begin:end])
                await asyncio.sleep(chance.choice([0, 0, 0.001]))
            if closes:
                return


ODD = [
    (rb"req_[0-9a-f]+", b"ID"),
    (rb"chatcmpl-[0-9A-Za-z-]+|msg_[0-9A-Za-z]+|call_[0-9A-Za-z]+|toolu_[0-9A-Za-z]+", b"ID"),
    (rb"Date: [^\r]+", b"Date: D"),
    (rb"(?<=_ms=)[0-9.]+|(?<=dur=)[0-9.]+", b"T"),
    (rb'("(?:[a-z_]*duration|created_at|created)": ?)(?:"[^"]*"|[0-9.]+)', rb"\1T"),
    (rb"\b[0-9.]+ s\b", b"T s"),
]


def plain(data: bytes) -> bytes:
    for pattern, text in ODD:
        data = re.sub(pattern, text, data)
    return data


class Client:
    """One connection, kept as long as the server keeps it; gives each response without ids, times and framing."""

    def __init__(self, running: Running) -> None:
        self._address = running.appliance.http_addresses[0]
        self._writer: asyncio.StreamWriter | None = None

    async def send(self, path: str, body: Any, more: str = "") -> tuple[bytes, bytes]:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        if self._writer is None or self._writer.is_closing() or self._reader.at_eof():
            self._reader, self._writer = await asyncio.open_connection(*self._address, limit=2**22)
        self._writer.write(f"POST {path} HTTP/1.1\r\nHost: x\r\n{more}".encode())
        self._writer.write(b"Content-Length: %d\r\n\r\n%b" % (len(data), data))
        return await asyncio.wait_for(self.receive(), 10)

    async def receive(self) -> tuple[bytes, bytes]:
        head = await self._reader.readuntil(b"\r\n\r\n")
        found = re.search(rb"Content-Length: (\d+)", head)
        body = b""
        if found is not None:
            body = await self._reader.readexactly(int(found[1]))
            head = head.replace(found[0], b"Content-Length: N")
        else:
            while size := int(await self._reader.readuntil(b"\r\n"), 16):
                body += (await self._reader.readexactly(size + 2))[:-2]
            await self._reader.readexactly(2)
        return plain(head), plain(body)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.transport.abort()


DIALECTS = {"openai": "/v1/chat/completions", "anthropic": "/v1/messages", "ollama": "/api/chat"}


def chat(prompt: str, stream: bool) -> dict[str, Any]:
    return {
        "model": "tiny",
        "messages": [{"role": "user", "content": prompt}],
        "stream": stream,
        "max_tokens": 99,
    }


class Lines:
    """What the access log is told of each request."""

    def __init__(self, running: Running, *, has_sizes: bool) -> None:
        self.lines: list[tuple[Any, ...]] = []
        log = running.appliance.pipeline.access_log
        write = log.write

        def note(receipt: Any, **facts: Any) -> None:
            attempts = [(one.label, one.status, one.outcome) for one in receipt.attempts]
            tokens = receipt.prompt_tokens, receipt.completion_tokens
            error = plain(receipt.error.encode())
            facts["sent_bytes"] = facts["sent_bytes"] if has_sizes else bool(facts["sent_bytes"])
            self.lines.append(
                (receipt.status, receipt.finish_label, receipt.streamed, tokens, attempts, error, facts)
            )
            write(receipt, **facts)

        log.write = note  # type: ignore[method-assign]


@pytest.fixture
async def server() -> AsyncIterator[RawServer]:
    async with RawServer(Recorded()) as server:
        yield server


def variables(server: RawServer, backend: str) -> dict[str, str]:
    rest = {"BREAKER_FAILURES": "100", "STREAM_DELAY_MS": "0"}
    if backend == "pool":
        return {"BACKENDS": f"e0={server.address}", **rest, **QUICK}
    endpoint = f"{server.address}/openai/v1"
    return {"NOVITA_API_KEY": "sk_test_hosted_0123456789", "NOVITA_OPENAI_ENDPOINTS": endpoint, **rest}


def in_use(running: Running) -> float:
    """Connections to servers that carry a request, as the metrics say."""
    running.appliance.fleet.measure()
    page = running.appliance.metrics.render(openmetrics=False).decode()
    found = re.search(r'appliance_upstream_connections\{state="in_use"\} ([0-9.]+)', page)
    assert found is not None
    return float(found[1])


async def is_settled(running: Running) -> bool:
    appliance = running.appliance
    return await until(
        lambda: (
            appliance.pipeline.in_flight == 0
            and appliance.router.dispatcher.waiting == 0
            and all(backend.in_flight == 0 for backend in appliance.router.backends())
        )
    )


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("backend", ["pool", "hosted"])
async def test_every_recorded_answer_is_the_same_in_callbacks_and_tasks(
    start: Start, server: RawServer, backend: str, dialect: str
) -> None:
    cases = [(name, False) for name in WHOLE] + [(name, True) for name in STREAMS]
    if backend == "pool":
        cases.remove(("429", False))  # the next request would wait for a second
    found: list[list[Any]] = []
    for in_tasks in (False, True):
        running = await start(**variables(server, backend))
        lines, client, seen = Lines(running, has_sizes=dialect != "ollama"), Client(running), []
        with every_coroutine_in_a_task() if in_tasks else nullcontext():
            for number, (name, stream) in enumerate(cases * 2):
                answer = await client.send(DIALECTS[dialect], chat(f"{name}:{number}", stream))
                seen.append((name, stream, answer))
            assert await is_settled(running)
        client.close()
        assert len(lines.lines) == len(cases) * 2
        assert not [line for line in running.appliance.lines.tail(5000) if "unhandled" in line.text]
        found.append([*zip(seen, lines.lines, strict=True)])
    for inline, in_task in zip(*found, strict=True):
        assert inline == in_task
    statuses = {answer[0].split(b" ")[1] for (_, _, answer), _ in found[0]}
    assert {b"200", b"502"} <= statuses


# ---- many requests in one write, clients that leave or do not read, a server that stops


@pytest.fixture(params=["in callbacks", "in tasks"])
def way(request: pytest.FixtureRequest) -> Iterator[None]:
    """Both ways, for what is told by itself."""
    with every_coroutine_in_a_task() if request.param == "in tasks" else nullcontext():
        yield


def raw(path: str, body: bytes, more: str = "") -> bytes:
    return f"POST {path} HTTP/1.1\r\nHost: x\r\n{more}Content-Length: {len(body)}\r\n\r\n".encode() + body


def stream_body(prompt: str) -> bytes:
    return json.dumps(chat(prompt, True)).encode()


MIX: list[tuple[bytes, bytes]] = [
    (raw("/v1/chat/completions", json.dumps(chat("plain:1", False)).encode()), b"200"),
    (raw("/v1/chat/completions", b"{"), b"400"),
    (raw("/v1/chat/completions", b""), b"400"),
    (raw("/v1/chat/completions", stream_body("vllm:2")), b"200"),
    (raw("/v1/chat/completions", stream_body("failed:3")), b"200"),
    (raw("/v1/chat/completions", json.dumps(chat("500:4", False)).encode()), b"502"),
    (raw("/api/chat", stream_body("sglang:5")), b"200"),
    (raw("/v1/messages", stream_body("novita:6")), b"200"),
    (raw("/v1/embeddings", b"{}"), b"400"),
    (raw("/v1/chat/completions", b'{"messages":[]}', "X-Request-Priority: odd\r\n"), b"400"),
]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("backend", ["pool", "hosted"])
async def test_requests_sent_together_are_answered_in_order(
    start: Start, server: RawServer, way: None, backend: str, seed: int
) -> None:
    """A mix of refused at once, whole and streamed ones, whatever packets they come in; aiohttp takes the last."""
    running, chance = await start(**variables(server, backend)), random.Random(seed)
    lines = Lines(running, has_sizes=True)
    for _ in range(3):
        wanted = [MIX[1]] * 20 + chance.choices(MIX, k=20)
        chance.shuffle(wanted)
        data = b"".join(request for request, _ in wanted) + b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
        reader, writer = await asyncio.open_connection(*running.appliance.http_addresses[0])
        client = Client(running)
        client._reader, client._writer = reader, writer
        cuts = sorted(chance.randrange(len(data)) for _ in range(chance.choice([0, 3, 50])))
        for begin, end in zip([0, *cuts], [*cuts, len(data)], strict=True):
            writer.write(data[begin:end])
            await asyncio.sleep(chance.choice([0, 0, 0.002]))
        for _, status in [*wanted, (b"", b"200")]:
            head, _ = await asyncio.wait_for(client.receive(), 10)
            assert head.split(b" ")[1] == status
        writer.close()
    assert await is_settled(running)
    assert [line[1] for line in lines.lines].count("client_left") == 0
    assert not [line for line in running.appliance.lines.tail(5000) if "unhandled" in line.text]


class Dripping:
    """A stream whose events come one by one, and without end."""

    def __init__(self, every_s: float = 0.005, size: int = 10) -> None:
        self.every_s, self.size = every_s, size
        self.goes_on = asyncio.Event()

    async def __call__(self, peer: Peer) -> None:
        while True:
            request = await peer.request()
            if not request.startswith(b"POST "):
                found = b'{"data":[{"id":"tiny"}]}' if request.startswith(b"GET /v1/models ") else b""
                peer.say(whole(found, OK if found else "HTTP/1.1 404 None\r\n"))
                continue
            await asyncio.sleep(self.every_s)
            peer.say(f"{OK}Content-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
            choice = {"index": 0, "delta": {"content": "x" * self.size}, "finish_reason": None}
            event = b"data: " + json.dumps({"model": "tiny", "choices": [choice]}).encode() + b"\n\n"
            count = 0
            while not self.goes_on.is_set():
                await peer.pour(b"%x\r\n%b\r\n" % (len(event), event))
                count += 1
                await asyncio.sleep(self.every_s)
            last = ALL["vllm"]
            peer.say(b"%x\r\n%b\r\n0\r\n\r\n" % (len(last), last))


@pytest.mark.parametrize("path", DIALECTS.values())
@pytest.mark.parametrize("backend", ["pool", "hosted"])
async def test_clients_that_leave_at_every_stage_leave_nothing_behind(
    start: Start, way: None, backend: str, path: str
) -> None:
    """Within head or body, before the first byte, in the stream, by a reset or in order, alone or with more sent."""
    chance = random.Random(path)
    async with RawServer(Dripping()) as server:
        running = await start(**variables(server, backend))
        lines = Lines(running, has_sizes=True)
        request = raw(path, stream_body("any:1"))

        async def leave(stage: int, is_reset: bool) -> int:
            reader, writer = await asyncio.open_connection(*running.appliance.http_addresses[0])
            if stage < 6:  # before it is sent
                writer.write(request[: len(request) * stage // 6])
            else:
                writer.write(request + request * chance.choice([0, 0, 1]) + request[: chance.choice([0, 30])])
            if stage > 8:
                await reader.read(100)
            await asyncio.sleep(chance.choice([0, 0.001, 0.006, 0.02]))
            if is_reset:
                writer.transport.abort()
            else:
                writer.close()
            return stage >= 6

        begun = await asyncio.gather(*(leave(stage, n % 2 == 0) for stage in range(12) for n in range(6)))
        assert await is_settled(running)
        assert await until(lambda: len(running.appliance.server.connections) == 0)
        assert 0 < len(lines.lines) <= sum(begun)
        assert {line[1] for line in lines.lines} == {"client_left"}
        assert not [line for line in running.appliance.lines.tail(5000) if "unhandled" in line.text]
        assert await until(lambda: in_use(running) == 0)


async def test_a_slow_reader_slows_the_server_and_gets_everything(start: Start, way: None) -> None:
    async with RawServer(script := Dripping(every_s=0, size=50_000)) as server:
        running = await start(**variables(server, "pool"))
        sock = socket.create_connection(running.appliance.http_addresses[0])
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
        sock.setblocking(False)
        reader, writer = await asyncio.open_connection(sock=sock, limit=65_536)
        writer.write(raw("/v1/chat/completions", stream_body("any:1")))
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200")

        def sent() -> int:
            return sum(peer.sent_bytes for peer in server.peers)

        before = -1
        while before != (before := sent()):  # until the server is stopped by what is unread
            await asyncio.sleep(0.3)
        (connection,) = running.appliance.server.connections._all
        assert connection._transport.get_write_buffer_size() < 1_000_000  # type: ignore[attr-defined]
        assert before < 64_000_000  # the rest is what the sockets of the system hold
        got = 0
        while got < 3_000_000:  # it reads a little: the server goes on
            got += len(await reader.read(65_536))
        assert await until(lambda: sent() > before)
        script.goes_on.set()
        out = b""
        while not out.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n"):
            piece = await asyncio.wait_for(reader.read(1_000_000), 10)
            assert piece
            out, got = out[-200:] + piece, got + len(piece)
        assert got > sent() * 0.99  # of the chunks' own bytes some are saved
        writer.close()
        assert await is_settled(running)
        assert running.appliance.receipts.latest(1)[0].finish_label == "done"


@pytest.mark.parametrize("how", ["drain", "stop", "cut"])
@pytest.mark.parametrize("backend", ["pool", "hosted"])
async def test_running_streams_end_as_the_server_ends(
    start: Start, way: None, backend: str, how: str
) -> None:
    """A drain and a stop let them end, and take no more; a cut ends them at once."""
    async with RawServer(script := Dripping()) as server:
        running = await start(**variables(server, backend))
        lines, appliance = Lines(running, has_sizes=True), running.appliance
        pairs = [await asyncio.open_connection(*appliance.http_addresses[0]) for _ in range(4)]
        request = raw("/v1/chat/completions", stream_body("any:1"))
        for reader, writer in pairs:
            writer.write(request * 2)  # the second waits for the first
            await reader.readuntil(b"xxx")
        if how == "drain":
            appliance.lifecycle.drain()
        else:
            getattr(appliance.server.connections, how)()
        asyncio.get_running_loop().call_later(0.05, script.goes_on.set)
        for reader, writer in pairs:
            out = b""
            try:
                while not (how == "drain" and b" 503 " in out):
                    piece = await asyncio.wait_for(reader.read(65_536), 5)
                    if not piece:
                        break
                    out += piece
            except ConnectionResetError:
                pass
            assert out.count(b"data: [DONE]\n\n\r\n0\r\n\r\n") == (how != "cut")
            assert out.count(b" 503 ") == (how == "drain")
            writer.close()
        assert await is_settled(running)
        ends = sorted(line[1] for line in lines.lines)
        assert ends == {"drain": ["done"] * 8, "stop": ["done"] * 4, "cut": ["cut_off"] * 4}[how]
        assert not [line for line in appliance.lines.tail(5000) if "unhandled" in line.text]


@contextmanager
def kept_garbage() -> Iterator[Counter[str]]:
    """Count what only the garbage collector ends: objects of a request, by their class."""
    kinds: Counter[str] = Counter()
    gc.collect()
    gc.disable()
    try:
        yield kinds
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        kinds.update(type(one).__name__ for one in gc.garbage if type(one).__name__ in OF_A_REQUEST)
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


OF_A_REQUEST = {
    *("Request", "EngineRequest", "Slot", "UpstreamStream", "StreamRelay", "InlineRunner", "Signal"),
    *("Connection", "PendingResponse", "UpstreamResponse", "UpstreamCall", "LateResponse", "FastConnection"),
}


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("backend", ["pool", "hosted"])
async def test_no_answer_leaves_work_for_the_garbage_collector(
    start: Start, server: RawServer, way: None, backend: str, dialect: str
) -> None:
    """Whatever the server sends: a request's body is freed when it has ended, not when the collector runs."""
    running, path = await start(**variables(server, backend), ACCESS_LOG="0"), DIALECTS[dialect]
    client = Client(running)
    cases = [(name, False) for name in WHOLE if name != "429"] + [(name, True) for name in STREAMS]
    for name, stream in cases:  # what is made once for all
        await client.send(path, chat(f"{name}:1", stream))
    with kept_garbage() as kinds:
        for name, stream in cases:
            await client.send(path, chat(f"{name}:1", stream))
    assert not kinds
    client.close()


@pytest.mark.parametrize("backend", ["pool", "hosted"])
async def test_no_client_that_leaves_leaves_work_for_the_garbage_collector(
    start: Start, way: None, backend: str
) -> None:
    async with RawServer(Dripping()) as server:
        running = await start(**variables(server, backend))
        request = raw("/v1/chat/completions", stream_body("any:1"))

        async def leave(stage: int) -> None:
            _, writer = await asyncio.open_connection(*running.appliance.http_addresses[0])
            writer.write(request * 2)
            await asyncio.sleep(stage * 0.002)
            writer.transport.abort()
            await asyncio.sleep(0.01)
            assert await is_settled(running)

        await leave(5)
        with kept_garbage() as kinds:
            for stage in range(10):
                await leave(stage)
        assert not kinds
