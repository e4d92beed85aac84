"""Heads and bodies of all sorts against a recording server: never two requests from one, never another body than was sent.

A strict reader of the same bytes says which requests they hold. The appliance may refuse more of them, but what reaches the
server must be among them. `FUZZ_CASES` (make fuzz) sets the number of cases, `FUZZ_SEED` the first seed.
"""

import asyncio
import json
import os
import random
import re
from collections import Counter
from contextlib import suppress
from typing import Any

import pytest

from tests.journeys.running import Start

CASES = int(os.environ.get("FUZZ_CASES", "300"))
SEED = int(os.environ.get("FUZZ_SEED", "1"))
AT_ONCE = 25
CHAT = "/v1/chat/completions"
TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
Found = tuple[str, str, bytes]  # method, target, body

ANSWER = json.dumps(
    {
        "id": "c",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "x"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
    }
).encode()
MODELS = json.dumps({"object": "list", "data": [{"id": "m", "object": "model", "owned_by": "x"}]}).encode()


# ---- the strict reader


class Unreadable(ValueError):
    """The bytes are no request by RFC 9112."""


class Incomplete(ValueError):
    """The bytes end within a request."""


def read_line(data: bytes, at: int) -> tuple[bytes, int]:
    end = data.find(b"\r\n", at)
    if end < 0:
        raise Incomplete
    return data[at:end], end + 2


def read_fields(data: bytes, at: int) -> tuple[list[tuple[bytes, bytes]], int]:
    fields = []
    while True:
        line, at = read_line(data, at)
        if not line:
            return fields, at
        name, colon, value = line.partition(b":")
        if not colon or not TOKEN.fullmatch(name) or re.search(rb"[\x00-\x08\x0a-\x1f\x7f]", value):
            raise Unreadable(line)
        fields.append((name.lower(), value.strip(b" \t")))


def read_chunks(data: bytes, at: int) -> tuple[bytes, int]:
    body = b""
    while True:
        line, at = read_line(data, at)
        match = re.fullmatch(rb"([0-9A-Fa-f]{1,16})[ \t]*(;[^\x00-\x08\x0a-\x1f\x7f]*)?", line)
        if match is None:
            raise Unreadable(line)
        size = int(match[1], 16)
        if not size:
            return body, read_fields(data, at)[1]
        if len(data) < at + size + 2:
            raise Incomplete
        body += data[at : at + size]
        if data[at + size : at + size + 2] != b"\r\n":
            raise Unreadable("chunk end")
        at += size + 2


def read_request(data: bytes, at: int) -> tuple[Found, int]:
    while data[at : at + 2] == b"\r\n":  # empty lines before a request are skipped
        at += 2
    line, at = read_line(data, at)
    match = re.fullmatch(rb"([A-Z]+) +([\x21-\x7e\x80-\xff]+) +HTTP/1\.[01]", line)
    if match is None:
        raise Unreadable(line)
    fields, at = read_fields(data, at)
    by_name: dict[bytes, list[bytes]] = {}
    for name, value in fields:
        by_name.setdefault(name, []).append(value)
    lengths, codings = by_name.get(b"content-length", []), by_name.get(b"transfer-encoding", [])
    if codings:
        if lengths or [coding.lower() for coding in codings] != [b"chunked"]:
            raise Unreadable("framing")
        body, at = read_chunks(data, at)
    elif lengths:
        if len(lengths) > 1 or not re.fullmatch(rb"[0-9]{1,18}", lengths[0]):
            raise Unreadable("length")
        size = int(lengths[0])
        if len(data) < at + size:
            raise Incomplete
        body, at = data[at : at + size], at + size
    else:
        body = b""
    return (match[1].decode(), match[2].decode("latin-1"), body), at


def read_all(data: bytes) -> list[Found]:
    """Return the requests that the bytes hold, up to what is none."""
    found, at = [], 0
    with suppress(Unreadable, Incomplete):
        while at < len(data):
            one, at = read_request(data, at)
            found.append(one)
    return found


def as_sent_on(request: Found) -> Found | None:
    """Give a request as the server must get it; None = it must not get it (no JSON)."""
    method, target, body = request
    if target.partition("?")[0] != CHAT:
        return request
    try:
        return method, CHAT, json.dumps(json.loads(body)["messages"]).encode()
    except (ValueError, KeyError, TypeError):
        return None


# ---- the recording server


class Recorder:
    """A server that reads strictly, and keeps what it got; its own probes aside."""

    def __init__(self) -> None:
        self.found: Counter[Found] = Counter()
        self.broken: list[bytes] = []
        self.url = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        data = b""
        with suppress(ConnectionError):
            while piece := await reader.read(65_536):
                data += piece
                while data:
                    try:
                        found, at = read_request(data, 0)
                    except Incomplete:
                        break
                    except Unreadable:
                        self.broken.append(data[:2000])
                        writer.close()
                        return
                    data = data[at:]
                    self.answer(found, writer)
        writer.close()

    def answer(self, found: Found, writer: asyncio.StreamWriter) -> None:
        method, target, _ = found
        body = MODELS if target == "/v1/models" else ANSWER
        if method != "GET" or "smuggled" in target or "fuzz" in target:
            kept = as_sent_on(found)
            if kept is not None:
                self.found[kept] += 1
        writer.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
            % (len(body), body)
        )


# ---- cases

FRAMINGS: list[bytes] = [
    b"Content-Length: %(size)d\r\n",
    b"Content-Length: %(size)d\r\nContent-Length: %(size)d\r\n",
    b"Content-Length: %(size)d\r\nContent-Length: %(less)d\r\n",
    b"Content-Length: %(less)d\r\nContent-Length: %(size)d\r\n",
    b"Content-Length: %(size)d, %(size)d\r\n",
    b"Content-Length: %(less)d\r\n",
    b"Content-Length: %(more)d\r\n",
    b"Content-Length: +%(size)d\r\n",
    b"Content-Length: -%(size)d\r\n",
    b"Content-Length: 0%(size)d\r\n",
    b"Content-Length: 0x%(size)x\r\n",
    b"Content-Length: %(size)d \t\r\n",
    b"Content-Length: %(size)d\x0b\r\n",
    b"Content-Length: \xb2\r\n",
    b"Content-Length:\r\n",
    b"Content-Length : %(size)d\r\n",
    b"Content_Length: %(size)d\r\n",
    b"X: y\n\rContent-Length: %(size)d\r\n",
    b"X: y\nContent-Length: %(size)d\r\n",
    b"X: y\r\n Content-Length: %(size)d\r\n",
    b"Content-Length: 0\r\nContent-Length\t: %(size)d\r\n",
    b"Content-Length: 18446744073709551617\r\n",
    b"",
]
CODINGS: list[bytes] = [
    b"Transfer-Encoding: chunked\r\n",
    b"transfer-encoding: Chunked\r\n",
    b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
    b"Transfer-Encoding: gzip, chunked\r\n",
    b"Transfer-Encoding: chunked, identity\r\n",
    b"Transfer-Encoding: identity\r\nTransfer-Encoding: chunked\r\n",
    b"Transfer-Encoding: xchunked\r\n",
    b"Transfer-Encoding: chunked;q=1\r\n",
    b"Transfer-Encoding: \x0bchunked\r\n",
    b"Transfer-Encoding : chunked\r\n",
    b"Transfer-Encoding:\r\n chunked\r\n",
    b"Transfer-Encoding: \"chunked\"\r\n",
    b"Transfer-Encoding: chunked\r\nContent-Length: %(size)d\r\n",
    b"Content-Length: %(less)d\r\nTransfer-Encoding: chunked\r\n",
    b"Content-Length: 0\r\nTransfer-Encoding: chunked\r\n",
    b"Transfer-Encoding: chunked\r\nConnection: Transfer-Encoding\r\n",
    b"Content-Length: %(chunked)d\r\nConnection: Content-Length\r\n",
]  # fmt: skip
SIZES: list[bytes] = [b"%x\r\n"] * 40 + [
    b"%x;ext=1\r\n",
    b"000%x\r\n",
    b"0x%x\r\n",
    b"+%x\r\n",
    b" %x\r\n",
    b"%x \r\n",
    b"%x\n",
    b"%x;a\nb\r\n",
    b"1000000000000000%x\r\n",
    b"-%x\r\n",
]


def chunked(body: bytes, random_: random.Random) -> bytes:
    out, at = b"", 0
    while at < len(body):
        size = random_.randint(1, max(1, len(body)))
        piece = body[at : at + size]
        out += (
            random_.choice(SIZES) % len(piece)
            + piece
            + random_.choice([b"\r\n"] * 40 + [b"\n", b"", b"x\r\n"])
        )
        at += size
    end = [b"0\r\n\r\n"] * 20 + [b"0\r\nContent-Length: 5\r\n\r\n", b"0\n\n", b"00\r\n\r\n", b"0\r\n\r", b""]
    return out + random_.choice(end)


def mutated(data: bytes, random_: random.Random) -> bytes:
    """Change up to three places of a head."""
    for _ in range(random_.choice([0, 0, 0, 0, 0, 0, 1, 1, 2, 3])):
        at = random_.randrange(len(data))
        what = random_.choice([b"\r\n", b"\n", b"\r", b"\x00", b" ", b"\t", b":", b"\xff", b"a", b"\x0b"])
        keep = random_.choice([at, at, at + 1])
        data = data[:at] + what + data[keep:]
    return data


def one_request(number: int, random_: random.Random) -> bytes:
    smuggled = b"\r\n\r\nPOST /smuggled/%d HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n" % number
    if random_.random() < 0.5:
        target = random_.choice([CHAT, CHAT, CHAT + "?a=1"])
        messages = [{"role": "user", "content": f"case {number} " + "é" * random_.randint(0, 40)}]
        body = json.dumps({"model": "m", "messages": messages}).encode()
        tail = random_.choice([b"", b"", smuggled])
    else:
        target = f"/fuzz/{number}"
        body, tail = b"body %d" % number + random_.choice([b"", smuggled, b"\x00" * 50]), b""
    method = random_.choice([b"POST"] * 16 + [b"PUT", b"GET", b"post"])
    sizes: dict[bytes, Any] = {
        b"size": len(body),
        b"less": random_.randrange(len(body)),
        b"more": len(body) + 9,
    }
    if random_.random() < 0.5:
        framing, wire_body = (FRAMINGS[0] if random_.random() < 0.5 else random_.choice(FRAMINGS)), body
    else:
        framing, wire_body = (
            (CODINGS[0] if random_.random() < 0.5 else random_.choice(CODINGS)),
            chunked(body, random_),
        )
    framing %= sizes | {b"chunked": len(wire_body)}
    version = random_.choice([b"HTTP/1.1"] * 20 + [b"HTTP/1.0", b"HTTP/1.2"])
    head = b"%b %b %b\r\nHost: x\r\nContent-Type: application/json\r\n%b" % (
        method,
        target.encode(),
        version,
        framing,
    )
    more = random_.choice(
        [b"", b"", b"Expect: 100-continue\r\n", b"Connection: close\r\n", b"Upgrade: h2c\r\n"]
    )
    return mutated(head + more, random_) + b"\r\n" + wire_body + tail


async def send(address: tuple[str, int], data: bytes, random_: random.Random) -> None:
    """Send the bytes in pieces; read what comes until there is silence."""
    reader, writer = await asyncio.open_connection(*address)
    cuts = sorted(random_.randrange(len(data)) for _ in range(random_.randint(0, 3)))
    with suppress(ConnectionError):
        for begin, end in zip([0, *cuts], [*cuts, len(data)], strict=True):
            writer.write(data[begin:end])
            await asyncio.sleep(random_.choice([0, 0, 0.002]))
        with suppress(TimeoutError):
            while await asyncio.wait_for(reader.read(65_536), 0.25):
                pass
    writer.close()


# ---- the promise


@pytest.mark.parametrize("seed", [SEED])
async def test_no_bytes_make_another_request_or_another_body(start: Start, seed: int) -> None:
    recorder = Recorder()
    async with await asyncio.start_server(recorder.serve, "127.0.0.1", 0) as upstream:
        port = upstream.sockets[0].getsockname()[1]
        running = await start(BACKENDS=f"e0=http://127.0.0.1:{port}", SLOW_START_S="0", ACCESS_LOG="0")
        address = running.appliance.http_addresses[0]
        reached = 0
        for first in range(0, CASES, AT_ONCE):
            cases = []
            for number in range(first, first + AT_ONCE):
                random_ = random.Random(seed * 1_000_003 + number)
                parts = [one_request(number * 10 + i, random_) for i in range(random_.choice([1, 1, 2, 3]))]
                cases.append((b"".join(parts), random_))
            await asyncio.gather(*(send(address, data, random_) for data, random_ in cases))
            allowed = Counter(
                kept for data, _ in cases for one in read_all(data) if (kept := as_sent_on(one)) is not None
            )
            assert not recorder.broken, recorder.broken
            for found, count in recorder.found.items():
                sent = [
                    data for data, _ in cases if found[1].encode("latin-1") in data and found[2][-9:] in data
                ]
                assert count <= allowed[found], (seed, first, found, sent[:2])
            reached += recorder.found.total()
            recorder.found.clear()
        assert running.appliance.pipeline.in_flight == 0
        lines = [line.text for line in running.appliance.lines.tail(2000)]
        assert lines
        assert not [line for line in lines if "unhandled" in line or "Traceback" in line]
    assert reached > CASES / 10  # the cases are not all refused
