"""An engine's publisher of KV events over real ZeroMQ, which a test can restart, disconnect, and let send anything."""

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgpack
import pytest
import zmq

from appliance.engines.kv.events import standard_hash
from tests.journeys.running import free_port


class Publisher:
    """One publisher. `sequence` is the number of the next message, as vLLM counts them."""

    def __init__(self, port: int = 0) -> None:
        self._context = zmq.Context()
        self.port, self.sequence = port or free_port(), 0
        self._socket: Any = None
        self.open()

    def open(self) -> None:
        self._socket = self._context.socket(zmq.XPUB)  # a PUB that reports subscriptions
        self._socket.setsockopt(zmq.XPUB_VERBOSE, 1)
        self._socket.linger = 0
        self._socket.bind(f"tcp://127.0.0.1:{self.port}")

    def disconnect(self) -> None:
        self._socket.close()

    async def has_subscribers(self, count: int = 1) -> None:
        """Wait for so many (more) subscriptions: what is sent before them is lost."""
        end = time.monotonic() + 30
        while count:
            if self._socket.poll(0):
                count -= self._socket.recv()[:1] == b"\x01"
            assert time.monotonic() < end, "there is no subscription"
            await asyncio.sleep(0.01)

    def send(self, *events: Any, topic: bytes = b"kv-events") -> None:
        self.send_parts(topic, self.sequence.to_bytes(8, "big"), msgpack.packb([1.0, list(events), 0]))
        self.sequence += 1

    def send_parts(self, *parts: bytes) -> None:
        self._socket.send_multipart(parts)

    def store(self, *numbers: int) -> None:
        """Send that blocks were stored: block n has the tokens n, n."""
        tokens = [number for number in numbers for _ in range(2)]
        self.send(["BlockStored", list(numbers), None, tokens, 2, None, "GPU"])

    def close(self) -> None:
        self._context.destroy(linger=0)


@contextmanager
def publishing(port: int = 0) -> Iterator[Publisher]:
    one = Publisher(port)
    try:
        yield one
    finally:
        one.close()


@pytest.fixture
def publisher() -> Iterator[Publisher]:
    with publishing() as one:
        yield one


def block_hash(number: int) -> int:
    """Return the standard hash of block n."""
    return standard_hash([number, number])
