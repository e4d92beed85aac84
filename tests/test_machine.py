"""The machine that the appliance runs on: its health address, the worker's port."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from appliance import machine
from appliance.host.prepare import Prepared
from appliance.interfaces import build_front
from appliance.machine import answers_health
from appliance.parts import Appliance
from appliance.settings import load_or_raise

PREPARED = Prepared((), "ab" * 16, nat={"outcome": "listener"})


@pytest.fixture
async def appliance(tmp_path: Path) -> AsyncIterator[Appliance]:
    """The parts of an appliance that does not listen."""
    settings, _ = load_or_raise({"STATE_DIR": str(tmp_path), "NAT_REDIRECT": "off", "PATH": "/usr/bin:/bin"})
    made = Appliance(settings, [])
    async with made.tasks:
        yield made
        await made.fleet.close()


@pytest.mark.parametrize(
    ("page", "is_healthy"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\n", True),
        (b"HTTP/1.1 503 Service Unavailable\r\n\r\n", False),
        (b"", False),
    ],
)
async def test_only_200_is_healthy(page: bytes, is_healthy: bool) -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert (await reader.readline()) == b"GET /healthz HTTP/1.1\r\n"
        writer.write(page)
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(handle, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        assert await answers_health("0.0.0.0", port) is is_healthy
    assert not await answers_health("127.0.0.1", port)


async def test_a_worker_port_in_use_is_a_warning(
    appliance: Appliance, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with (
        await asyncio.start_server(lambda *_: None, "127.0.0.1", 0) as taken,
        AsyncExitStack() as stack,
    ):
        port = taken.sockets[0].getsockname()[1]
        monkeypatch.setattr(machine, "WORKER_PORT", port)
        monkeypatch.setattr(machine, "load_or_prepare", lambda *_, **__: PREPARED)
        appliance.http_addresses = [("127.0.0.1", 1)]
        await machine.open_machine(appliance, build_front(appliance), stack)
    (warning,) = appliance.lifecycle.warnings
    assert warning.startswith(
        f"cannot listen on 127.0.0.1:{port}: Address already in use. Process {os.getpid()} ("
    )
    assert "listens there. Only worker CLIs need port" in warning  # it is fixed: no setting moves it
    assert warning.endswith("NAT_REDIRECT=off.")
    assert appliance.worker is not None
