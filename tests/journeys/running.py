"""The whole appliance on loopback, as a user runs it: in this process or in one of its own, against the demo engine or a stand-in."""

import asyncio
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from appliance.app import running
from appliance.parts import Appliance
from appliance.settings import load_or_raise
from tests.fakes.hosted_api import KEY, HostedApi


@dataclass
class Running:
    """A running appliance with its addresses."""

    appliance: Appliance
    base_url: str
    control_address: str

    @property
    def v1(self) -> str:
        return self.base_url + "/v1"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


Start = Callable[..., Awaitable[Running]]


@pytest.fixture
async def start(tmp_path) -> AsyncIterator[Start]:
    """Start appliances with given variables; all end with the test."""
    async with AsyncExitStack() as stack:

        async def begin(**variables: str) -> Running:
            socket_path = tmp_path / f"control-{free_port()}.sock"
            environ = {
                "PROXY_PORT": str(free_port()),
                "CONTROL_PORT": "0",
                "CONTROL_SOCKET": str(socket_path),
                "STATE_DIR": str(tmp_path / "state"),
                "MACHINE_ID_PATH": str(tmp_path / "machine-id"),
                "GPU_SPOOF_STATE_DIR": str(tmp_path / "gpu"),
                "NAT_REDIRECT": "off",
                "LOG_FORMAT": "json",
                "SHUTDOWN_GRACE_S": "2",
                "PATH": "/usr/bin:/bin",
                **variables,
            }
            settings, _ = load_or_raise(environ)
            appliance = await stack.enter_async_context(running(settings))
            host, port = appliance.http_addresses[0]
            return Running(appliance, f"http://{host}:{port}", f"unix:{socket_path}")

        yield begin


@pytest.fixture
async def hosted() -> AsyncIterator[HostedApi]:
    async with HostedApi() as api:
        yield api


@pytest.fixture(params=["demo", "hosted"])
async def anyone(request: pytest.FixtureRequest, start: Start, hosted: HostedApi) -> Running:
    """The appliance with the demo engine, and with a hosted stand-in: what holds for clients must hold with both."""
    if request.param == "demo":
        return await start()
    return await start(NOVITA_API_KEY=KEY, NOVITA_OPENAI_ENDPOINTS=hosted.base_url)


@pytest.fixture
async def relay(start: Start, hosted: HostedApi) -> Running:
    """The appliance that relays to the stand-in."""
    return await start(NOVITA_API_KEY=KEY, NOVITA_OPENAI_ENDPOINTS=hosted.base_url)


async def until(condition: Callable[[], bool], *, seconds: float = 5.0) -> bool:
    """Wait until something holds; give whether it came to hold."""
    for _ in range(int(seconds / 0.02)):
        if condition():
            return True
        await asyncio.sleep(0.02)
    return condition()


@dataclass
class Process:
    """An appliance in a process of its own."""

    process: subprocess.Popen[bytes]
    base_url: str
    control_address: str
    log: Path

    def text(self) -> str:
        return self.log.read_text()


Spawn = Callable[..., Process]
SERVE = ("appliance", "serve")


@pytest.fixture
def spawn(tmp_path: Path) -> Iterator[Spawn]:
    """Start `python -m appliance serve` with given variables; wait until it answers; end it with the test."""
    with spawning(tmp_path) as begin:
        yield begin


@contextmanager
def spawning(tmp_path: Path) -> Iterator[Spawn]:
    """Start `python -m appliance serve` with given variables; wait until it answers; end it at the end."""
    started: list[subprocess.Popen[bytes]] = []

    def begin(*, wait: bool = True, program: Sequence[str] = SERVE, **variables: str) -> Process:
        port, control = free_port(), free_port()
        environ = {
            "PATH": os.environ["PATH"],
            "PROXY_PORT": str(port),
            "CONTROL_PORT": str(control),
            "STATE_DIR": str(tmp_path / "state"),
            "MACHINE_ID_PATH": str(tmp_path / "machine-id"),
            "GPU_SPOOF_STATE_DIR": str(tmp_path / "gpu"),
            "NAT_REDIRECT": "off",
            "LOG_FORMAT": "json",
            "SHUTDOWN_GRACE_S": "5",
            **variables,
        }
        log = tmp_path / f"appliance-{port}.log"
        with log.open("wb") as out:
            process = subprocess.Popen([sys.executable, "-m", *program], env=environ, stdout=out, stderr=out)
        started.append(process)
        running = Process(process, f"http://127.0.0.1:{port}", f"127.0.0.1:{control}", log)
        for _ in range(1500 if wait else 0):
            if process.poll() is not None:
                raise AssertionError(f"it ended with {process.returncode}: {running.text()}")
            try:
                with urllib.request.urlopen(running.base_url + "/healthz", timeout=1):
                    break
            except OSError:
                time.sleep(0.02)
        return running

    try:
        yield begin
    finally:
        for process in started:
            if process.poll() is None:
                process.terminate()
                try:
                    process.wait(15)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()


@pytest.fixture
def appliance(spawn: Spawn) -> Process:
    """An appliance in a process of its own, with the demo engine."""
    return spawn()
