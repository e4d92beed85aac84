"""The path of a request in one process, without sockets: ACCOUNTS on beside off, in turns of 64 requests.

    python -m bench.inside whole|stream|bursts [TURNS]

Both appliances are whole; only their transports are not sockets, so that what is measured is the Python of this thread.
What is settled in the background is left out: it is done between the turns. Figures are the least of many turns, since
other programs on the machine can only add to them.

    whole     whole responses
    stream    streams of 202 events that come one by one
    bursts    the same, 16 at a time
"""

import asyncio
import gc
import json
import os
import sys
import tempfile
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import uvloop

from appliance.app import running, settle_memory
from appliance.parts import Appliance
from appliance.settings import load_or_raise
from bench.__main__ import CHAT, free_port
from bench.account_data import CLIENT_KEY, accounts_environ, add_users, plain_environ

CLIENTS, TURNS, EVENTS, BURST = 64, 32, 200, 16
WHOLE_IN_TURN = 8  # times 64: a turn takes long enough to be measured
ANSWER = json.dumps(
    {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1700000000,
        "model": "upstream/base-model",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "The quick brown fox jumps over the lazy dog."},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 12, "completion_tokens": 9, "total_tokens": 21},
    }
).encode()
WHOLE = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (
    len(ANSWER),
    ANSWER,
)
STREAM_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def event(delta: bytes, finish: bytes = b"null") -> bytes:
    """Return one chunk with one event of a stream."""
    line = (
        b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1700000000,"model":"upstream/base-model",'
        b'"choices":[{"index":0,"delta":{%b},"finish_reason":%b}]}\n\n' % (delta, finish)
    )
    return b"%x\r\n%b\r\n" % (len(line), line)


def pieces_of(mode: str) -> list[bytes]:
    """Return what the upstream sends, piece by piece."""
    if mode == "whole":
        return [WHOLE]
    words = [event(b'"content":" word"') for _ in range(EVENTS)]
    last = event(b"", b'"stop"') + b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"
    size = BURST if mode == "bursts" else 1
    groups = [b"".join(words[at : at + size]) for at in range(0, EVENTS, size)]
    return [STREAM_HEAD, event(b'"role":"assistant","content":""'), *groups, last]


class Wire:
    """A transport that keeps what is written to it."""

    def __init__(self) -> None:
        self.out: list[bytes] = []
        self.is_closed = False

    def write(self, data: bytes) -> None:
        self.out.append(data)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return ("127.0.0.1", 5) if name == "peername" else default

    def is_closing(self) -> bool:
        return self.is_closed

    def close(self) -> None:
        self.is_closed = True

    abort = close

    def pause_reading(self) -> None:
        """Go on all the same."""

    resume_reading = write_eof = pause_reading

    def get_write_buffer_size(self) -> int:
        return 0


class Side:
    """One appliance with 64 clients, and connections to its upstream that are not there."""

    def __init__(self, appliance: Appliance, keys: list[str], mode: str, log: Any) -> None:
        appliance.pipeline.access_log._stream = log
        self.mode, self.pieces = mode, pieces_of(mode)
        self.upstream: list[Any] = []
        hosted: Any = appliance.router.backends()[0]
        hosted._wire._dialer.dial = self.dial
        self.clients = []
        for number in range(CLIENTS):
            assert appliance.server is not None
            connection, wire = appliance.server.connect(), Wire()
            connection.connection_made(wire)  # type: ignore[arg-type]
            self.clients.append((connection, wire, request_of(keys[number % len(keys)], mode)))

    async def dial(self, key: Any, make: Any) -> Any:
        connection = make()
        connection.connection_made(Wire())
        self.upstream.append(connection)
        return connection

    async def turn(self) -> None:
        """Let each client send one request, and read its response."""
        for connection, _, request in self.clients:
            connection.data_received(request)
        await rest()
        for _ in range(1000):
            busy = [one for one in self.upstream if one._transport.out]
            if len(busy) == CLIENTS:
                break
            await asyncio.sleep(0.005)  # the first requests look keys and wallets up
        else:
            raise SystemExit(f"refused: {[wire.out for _, wire, _ in self.clients if wire.out][:1]}")
        for one in busy:
            one._transport.out.clear()
        for piece in self.pieces:
            for one in busy:
                one.data_received(piece)
            await rest()
        for _, wire, _ in self.clients:
            assert wire.out[0].startswith(b"HTTP/1.1 200"), wire.out
            assert self.mode == "whole" or wire.out[-1].endswith(b"0\r\n\r\n"), wire.out
            wire.out.clear()


async def rest() -> None:
    """Let the loop make its writes."""
    for _ in range(4):
        await asyncio.sleep(0)


def request_of(key: str, mode: str) -> bytes:
    """Return the bytes of a chat."""
    body = json.dumps(CHAT if mode == "whole" else {**CHAT, "max_tokens": 512, "stream": True}).encode()
    return (
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: bench\r\nAuthorization: Bearer %b\r\n"
        b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (key.encode(), len(body), body)
    )


async def measure(mode: str, folder: Path, turns: int, log: Any) -> str:
    """Return what was measured, as text."""
    sides, least = {}, {"off": 1e9, "on": 1e9}
    async with AsyncExitStack() as stack:
        for name in ("off", "on"):
            own = folder / name
            own.mkdir()
            environ = plain_environ(own, 9) | {"PROXY_PORT": str(free_port()), "CONTROL": "0"}
            environ |= accounts_environ(own) if name == "on" else {}
            appliance = await stack.enter_async_context(running(load_or_raise(environ)[0]))
            keys = [CLIENT_KEY]
            if appliance.accounts is not None:
                users = await add_users(appliance.accounts, CLIENTS + 1)
                keys = [user.key for user in users[1:]]  # of the form that is looked up
                settler = appliance.accounts.money.settler
                for task in appliance.accounts.money._started:
                    task.cancel()  # settling and syncing: `drain` below settles
            sides[name] = Side(appliance, keys, mode, log)
        settle_memory()
        gc.disable()
        for number in range(turns):
            for name, side in sides.items():
                if number % 10 == 0:
                    gc.collect()
                began_s, times = time.thread_time(), WHOLE_IN_TURN if mode == "whole" else 1
                for _ in range(times):
                    await side.turn()
                took_us = (time.thread_time() - began_s) / (times * CLIENTS) * 1e6
                least[name] = min(least[name], took_us)
            await settler.drain()
        gc.enable()
        for side in sides.values():
            for connection, _, _ in side.clients:
                connection.connection_lost(None)
            for one in side.upstream:
                one.connection_lost(None)
    off, on = least["off"], least["on"]
    text = f"inside, {mode}: off {off:.1f} µs a request, on {on:.1f}; ratio {off / on:.2f}; {on - off:.1f} µs more"
    return text if mode == "whole" else f"{text}, {(on - off) / (EVENTS + 2):.2f} an event"


def main() -> None:
    mode, turns = sys.argv[1], int(sys.argv[2]) if sys.argv[2:] else TURNS
    with tempfile.TemporaryDirectory(prefix="bench-") as folder, open(os.devnull, "w") as log:
        print(uvloop.run(measure(mode, Path(folder), turns, log)))


if __name__ == "__main__":
    main()
