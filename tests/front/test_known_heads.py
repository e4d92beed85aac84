"""A head that the connection has sent before is never read otherwise than by a connection that has not.

Seeded sequences of requests, whole and cut anywhere, over one connection and over a new one for each request. `FUZZ_CASES`
(make fuzz) sets the number of sequences, `FUZZ_SEED` the first seed.
"""

import asyncio
import io
import os
import random
import re
from typing import Any

import pytest

from appliance.base.clock import FakeClock
from appliance.base.inline import every_coroutine_in_a_task
from appliance.base.metrics.registry import Metrics
from appliance.base.watch import Watched
from appliance.engines.receipts import Receipts
from appliance.front.pipeline.access_log import AccessLog
from appliance.front.pipeline.heads import BadHead, KnownHead, parse_request_head
from appliance.front.pipeline.pipeline import RequestPipeline
from appliance.front.pipeline.request import Request
from appliance.front.pipeline.response import Response
from appliance.front.pipeline.route import Route
from appliance.front.server.connections import Connections
from appliance.front.server.fast_connection import FastConnection
from appliance.front.settings import FrontSettings
from tests.base.test_inline import in_callback
from tests.front.test_connections import Inner, Transport

CASES = int(os.environ.get("FUZZ_CASES", "600"))
SEED = int(os.environ.get("FUZZ_SEED", "1"))
KEYS = {"appliance_api_keys": "client-key-1"}
PLAIN = b"POST /a HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer client-key-1\r\nContent-Length: %b\r\n\r\n"


class Server:
    """Connections whose two hot addresses repeat what they get, at once or in another turn of the loop."""

    def __init__(self, **settings: Any) -> None:
        clock = FakeClock()
        clock.advance(1)
        self.state = Watched("serving")
        self.log = io.StringIO()
        self.pipeline = RequestPipeline(
            FrontSettings(_env_file=None, **(KEYS | settings)),
            receipts=Receipts(),
            metrics=Metrics(),
            access_log=AccessLog(clock=clock, form="json", stream=self.log),
            clock=clock,
            state=self.state,
        )
        routes = [Route(("POST",), "/a", self.repeat, is_hot=True)]
        routes.append(Route(("POST",), "/b", self.repeat, dialect="ollama", is_hot=True))
        self.shared = Connections(self.pipeline, routes, clock=clock)
        self.inner = Inner()

    async def repeat(self, request: Request) -> Response:
        if request.body[:1] == b"w":
            await asyncio.sleep(0)
        head = f"{request.path} {sorted(request.headers.items())} {request.options} ".encode()
        return Response(200, head + request.body, "text/plain")

    def connect(self) -> tuple[FastConnection, Transport]:
        connection = FastConnection(self.shared, lambda _, buffer: (self.inner, buffer))  # type: ignore[arg-type,return-value]
        transport = Transport()
        connection.connection_made(transport)  # type: ignore[arg-type]
        return connection, transport


async def feed(connection: FastConnection, data: bytes) -> None:
    """Bring bytes as the transport does: in a callback, where requests are answered in the same call."""
    await in_callback(lambda: connection.data_received(data))


async def until_idle(server: Server, connection: FastConnection) -> None:
    for _ in range(200):
        await asyncio.sleep(0)
        if not connection.busy and not server.pipeline.in_flight:
            await asyncio.sleep(0)  # what was answered in this turn is written
            return
    raise AssertionError("a request does not end")


def plain(out: bytes) -> bytes:
    return re.sub(rb"req_[0-9a-f]+", b"ID", out)


Seen = tuple[
    bytes, bytes, list[str], list[str]
]  # written, handed over, calls of the transport, of the inner one


async def over_one(pieces: list[bytes], **settings: Any) -> Seen:
    """Send the pieces over one connection, as the transport would bring them."""
    server = Server(**settings)
    connection, transport = server.connect()
    for number, piece in enumerate(pieces):
        if {"close", "abort"} & set(transport.calls) or not piece:
            continue
        await feed(connection, piece)
        if number % 2:
            await until_idle(server, connection)
    await until_idle(server, connection)
    assert server.pipeline.in_flight == 0
    asked = [call for call in server.inner.calls if call != "is_idle"]  # how often depends on the cuts
    return plain(transport.out), server.inner.data, transport.calls, asked


async def over_new(requests: list[bytes], **settings: Any) -> Seen:
    """Send each request over a new connection, until one is handed over or closes its connection."""
    out = b""
    for number, request in enumerate(requests):
        written, unread, calls, inner = await over_one([request], **settings)
        out += written
        if inner or calls:
            return out, unread + (b"".join(requests[number + 1 :]) if inner else b""), calls, inner
    return out, b"", [], []


# ---- what is sent

HEADS = [
    PLAIN,
    b"POST /b HTTP/1.1\r\nhost: x\r\ncontent-length:%b\r\nx-api-key: client-key-1\r\nX-Request-Priority: low\r\n\r\n",
    b"POST /a HTTP/1.1\r\nHost: x\r\nCONTENT-LENGTH:  %b\r\nAuthorization: Bearer client-key-1\r\nX-A: 1\r\nX-A: 2\r\n\r\n",
    b"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: %b\r\nAuthorization: Bearer unknown-key\r\n\r\n",
    b"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: %b\r\n\r\n",
    b"POST /b HTTP/1.1\r\nContent-Length: %b\r\nHost: x\r\nX-Api-Key: client-key-1\r\nX-Request-Priority: odd\r\n\r\n",
]
LENGTHS: list[bytes] = [
    *[b"%(size)d"] * 12,
    b"0%(size)d",
    b"00000000000000%(size)d",
    b"000000000000000000%(size)d",
    b" %(size)d",
    b"%(size)d ",
    b"\t%(size)d",
    b"%(size)d\t",
    b"+%(size)d",
    b"-%(size)d",
    b"0x%(size)x",
    b"%(size)d,%(size)d",
    b"%(size)d\r\nContent-Length: %(size)d",
    b"%(size)d\r\nContent-Length: 0",
    b"%(size)d\r\ncontent-length: 1",
    b"%(size)d\r\nTransfer-Encoding: chunked",
    b"%(size)d\r\nExpect: 100-continue",
    b"%(size)d\r\nConnection: close",
    b"%(size)d\r\nConnection: keep-alive",
    b"%(size)d\r\nHost: y",
    b"999999999999999",
    b"9999999999999999",
    b"99999999999999999999",
    b"",
    b"\xb2",
    b"%(size)d\n",
    b"%(size)d\r\n X: folded",
]
OTHERS: list[bytes] = [
    b"GET /cold HTTP/1.1\r\nHost: x\r\n\r\n",
    b"POST /a?q=1 HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}",
    b"POST /a HTTP/1.0\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}",
    b"garbage\r\n\r\n",
    b"\x00\xff\r\n\r\n",
    b"\r\n\r\n",
    b"POST /a HTTP/1.1\r\nno colon\r\n\r\n",
]


def one_request(chance: random.Random, head: bytes) -> bytes:
    if chance.random() < 0.06:
        return chance.choice(OTHERS)
    body = chance.choice([b"", b"{}", b"now", b"wait", b"w" * 20, b"x" * 5000, b"POST /a HTTP/1.1\r\n\r\n"])
    length = chance.choice(LENGTHS) if chance.random() < 0.35 else LENGTHS[0]
    if b"%(" in length:
        length %= {b"size": len(body)}
    head = head % length
    if chance.random() < 0.08:
        at = chance.randrange(len(head))
        head = (
            head[:at] + chance.choice([b"a", b"\r\n", b" ", b"0", b"\n"]) + head[at + chance.choice([0, 1]) :]
        )
    return head + body


def ends_within(request: bytes) -> bool:
    """Whether a head says more or less of a body than follows it: the rest belongs to no request."""
    end = request.find(b"\r\n\r\n")
    if end < 0:
        return True
    try:
        headers, _ = parse_request_head(request[: end + 4])
    except BadHead:
        return False
    length = headers.get("content-length", "")
    return length.isdigit() and int(length) != len(request) - end - 4 and int(length) < 2**26


def sequence(seed: int) -> list[bytes]:
    """Return requests that mostly have one head, each complete in itself."""
    chance = random.Random(seed)
    heads = chance.choices(HEADS, k=chance.choice([1, 1, 2]))
    wanted = chance.randint(2, 24 if chance.random() < 0.2 else 6)
    requests: list[bytes] = []
    while len(requests) < wanted:
        request = one_request(chance, chance.choice(heads))
        if not ends_within(request):
            requests.append(request)
    return requests


def cut(data: bytes, chance: random.Random) -> list[bytes]:
    cuts = sorted(chance.randrange(len(data) + 1) for _ in range(chance.choice([0, 1, 2, 5, 30])))
    return [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]


def without_times(calls: list[str]) -> list[str]:
    """Leave out what depends on how long the machine takes: pauses, and the end of a wait for the client's end."""
    left_out = {"pause_reading", "resume_reading"} | ({"abort"} if "write_eof" in calls else set())
    return [call for call in calls if call not in left_out]


@pytest.mark.parametrize("part", range(4))
async def test_a_sequence_is_read_as_new_connections_read_it(part: int) -> None:
    known = 0
    for seed in range(SEED * 1_000_003 + part, SEED * 1_000_003 + CASES, 4):
        requests = sequence(seed)
        expected = await over_new(requests)
        known += expected[0].count(b" 200 OK")
        data, chance = b"".join(requests), random.Random(seed)
        for pieces in (
            requests,
            [data],
            cut(data, chance),
            [data[at : at + 1] for at in range(len(data[:3000]))],
        ):
            if b"".join(pieces) != data:
                continue
            found = await over_one(pieces)
            calls = (found[0], found[1], without_times(found[2]), found[3])
            assert calls == (*expected[:2], without_times(expected[2]), expected[3]), (seed, requests)
        with every_coroutine_in_a_task():
            found = await over_one([data])
        assert (found[0], found[1], found[3]) == (expected[0], expected[1], expected[3]), (seed, requests)
    assert known > CASES / 10


# ---- the comparison itself


def known_of(head: bytes) -> KnownHead | None:
    headers, may_stay = parse_request_head(head)
    return KnownHead.of(head, Route(("POST",), "/a", Server.repeat), headers, may_stay=may_stay)  # type: ignore[arg-type]


@pytest.mark.parametrize("first", [head % b"7" for head in HEADS])
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("other", HEADS)
def test_what_is_taken_for_the_same_head_has_the_same_fields(
    first: bytes, other: bytes, length: bytes
) -> None:
    known = known_of(first)
    assert known is not None
    if b"%(" in length:
        length %= {b"size": 13}
    head = other % length
    found = known.compare(b"before" + head + b"body", 6)
    if found is not None:
        size, at = found
        assert (known.headers, known.may_stay) == parse_request_head(head)
        assert (size, at) == (int(known.headers["content-length"]), 6 + len(head))
        assert not {"expect", "transfer-encoding"} & set(known.headers)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("length", [b"0", b"8", b"123456", b"999999999999999"])
def test_a_head_that_differs_in_its_length_alone_is_known(head: bytes, length: bytes) -> None:
    known = known_of(head % b"7")
    assert known is not None
    assert known.compare(head % length + b"x", 0) == (int(length), len(head % length))
    assert known.headers["content-length"] == length.decode()
    for end in range(len(head % length)):  # cut anywhere, it is not complete
        assert known.compare((head % length)[:end], 0) is None


@pytest.mark.parametrize(
    "head",
    [
        b"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 7 \r\n\r\n",
        b"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length:\t7\r\n\r\n",
        b"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 0000000000000007\r\n\r\n",
        b"POST /a HTTP/1.1\r\nHost: x\r\n\r\n",
    ],
)
def test_a_head_without_a_plain_length_is_not_remembered(head: bytes) -> None:
    assert known_of(head) is None


# ---- what a known head does not carry over


@pytest.mark.parametrize("together", [False, True])
async def test_a_key_that_is_withdrawn_is_refused_at_once(together: bool) -> None:
    server = Server()
    connection, transport = server.connect()
    one = PLAIN % b"2" + b"{}"
    await feed(connection, one)
    new = FrontSettings(_env_file=None, appliance_api_keys="client-key-2")
    if together:  # the second is in the buffer while the first is answered
        transport.out = b""
        both = PLAIN % b"4" + b"wait" + one
        await in_callback(lambda: (connection.data_received(both), server.pipeline.apply(new)))
        await until_idle(server, connection)
        assert [transport.out.count(word) for word in (b" 200 OK", b" 401 ")] == [1, 1]
        return
    server.pipeline.apply(new)
    await feed(connection, one)
    await until_idle(server, connection)
    assert [transport.out.count(word) for word in (b" 200 OK", b" 401 ")] == [1, 1]
    server.pipeline.apply(FrontSettings(_env_file=None, **KEYS))
    await feed(connection, one)
    await until_idle(server, connection)
    assert transport.out.count(b" 200 OK") == 2


@pytest.mark.parametrize(
    ("before", "after", "head", "status"),
    [
        ({}, {"operator_api_keys": "operator-key-1"}, b"X-Appliance-Backend: e0", 403),
        ({}, {"stay_local_api_keys": "client-key-1"}, b"X-A: 1", 200),
        ({}, {"max_body_bytes": 1024}, b"X-A: 1", 413),
    ],
)
async def test_settings_of_a_reload_hold_for_a_known_head(
    before: dict[str, Any], after: dict[str, Any], head: bytes, status: int
) -> None:
    server = Server(**before)
    connection, transport = server.connect()
    one = PLAIN.replace(b"Host: x", b"Host: x\r\n" + head) % b"2000" + b"x" * 2000
    await feed(connection, one)
    assert b" 200 OK" in transport.out
    transport.out = b""
    server.pipeline.apply(FrontSettings(_env_file=None, **KEYS, **after))
    await feed(connection, one)
    await until_idle(server, connection)
    assert b" %d " % status in transport.out
    assert (b"is_local_only=True" in transport.out) is ("stay_local_api_keys" in after)


async def test_a_drain_holds_for_a_known_head() -> None:
    server = Server()
    connection, transport = server.connect()
    for state, count in (("serving", 0), ("draining", 1), ("serving", 1), ("stopping", 2)):
        server.state.set(state)
        await feed(connection, PLAIN % b"2" + b"{}")
        await until_idle(server, connection)
        assert transport.out.count(b" 503 ") == count


# ---- a client that leaves, and a server that stops, between requests that were sent together


@pytest.mark.parametrize("turn", range(6))
async def test_a_client_that_leaves_at_any_turn_is_accounted_for(turn: int) -> None:
    """The request that was being answered, and the next one if it has begun; neither is a fault of ours."""
    server = Server()
    connection, transport = server.connect()
    await feed(connection, PLAIN % b"4" + b"wait" + PLAIN % b"2" + b"{}" + PLAIN % b"4" + b"wait")
    for _ in range(turn):
        await asyncio.sleep(0)
    connection.connection_lost(None)
    await until_idle(server, connection)
    receipts = server.pipeline.receipts.latest(9)
    assert len(receipts) >= 1
    assert {receipt.finish_label for receipt in receipts} <= {"done", "client_left"}
    assert transport.out.count(b" 200 OK") == sum(r.finish_label == "done" for r in receipts)
    assert "abort" not in transport.calls


@pytest.mark.parametrize("rest", [b"", PLAIN[:40], PLAIN % b"2" + b"{}", PLAIN % b"9" + b"{}"])
@pytest.mark.parametrize("how", ["stop", "cut"])
async def test_many_requests_at_once_do_not_outlive_a_stop(how: str, rest: bytes) -> None:
    """After each 16 the connection gives way to others; a stop in that moment ends it."""
    server = Server()
    connection, transport = server.connect()
    many = (PLAIN % b"2" + b"{}") * 16 + rest
    await in_callback(lambda: (connection.data_received(many), getattr(server.shared, how)()))
    await until_idle(server, connection)
    assert {"close", "abort"} & set(transport.calls)
    assert transport.out.count(b" 200 OK") == 16
