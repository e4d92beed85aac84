"""`appliance simulate` as a process: what it prints, how it ends, what it refuses."""

import asyncio
import json
import os
import signal
import socket
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from appliance.simulate.loopback import is_loopback
from tests.simulate.calls import KEYS, ORDER

COMMAND = (sys.executable, "-m", "appliance", "simulate")


@asynccontextmanager
async def simulating(*arguments: str) -> AsyncIterator[tuple[Process, dict]]:
    """Run it; yield the process and what it printed as JSON."""
    process = await asyncio.create_subprocess_exec(*COMMAND, "--json", *arguments, stdout=PIPE, stderr=PIPE)
    try:
        line = await process.stdout.readline()
        yield process, json.loads(line)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def refused(*arguments: str) -> tuple[int, str]:
    """Run it with wrong arguments; return (exit code, what it printed on stderr)."""
    process = await asyncio.create_subprocess_exec(*COMMAND, *arguments, stdout=PIPE, stderr=PIPE)
    out, err = await process.communicate()
    assert out == b""
    return process.returncode, " ".join(err.decode().split())


def children(pid: int) -> list[int]:
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def can_connect(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


async def rent_and_wait(printed: dict) -> int:
    """Rent an instance, let it run; return its engine's port."""
    base = f"http://127.0.0.1:{printed['ports']['vast']}"
    async with aiohttp.ClientSession(base, headers=KEYS["vast"]) as session:

        async def ask(method: str, path: str, body: dict | None = None) -> dict:
            async with session.request(method, path, json=body) as response:
                return await response.json()

        wanted = {"rentable": {"eq": True}}
        offer = (await ask("POST", "/api/v0/bundles/", wanted))["offers"][0]
        await ask("PUT", f"/api/v0/asks/{offer['id']}/", ORDER)
        await ask("POST", "/_clock", {"advance_s": 60})
        (row,) = (await ask("GET", "/api/v1/instances/"))["instances"]
        return int(row["ports"]["8000/tcp"][0]["HostPort"])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_signal_ends_it_and_its_engines(number: int) -> None:
    async with simulating() as (process, printed):
        engine = await rent_and_wait(printed)
        assert can_connect(engine)
        process.send_signal(number)
        assert await asyncio.wait_for(process.wait(), 10) == 0
        assert (await process.stderr.read()) == b""
        assert not can_connect(engine)
        assert not any(map(can_connect, printed["ports"].values()))


async def test_kill_9_leaves_no_process_and_no_port() -> None:
    async with simulating() as (process, printed):
        engine = await rent_and_wait(printed)
        assert children(process.pid) == []
        process.kill()
        await process.wait()
        assert not can_connect(engine)
        assert not any(map(can_connect, printed["ports"].values()))


async def test_the_printed_environment_names_each_service() -> None:
    async with simulating("--vast", "0") as (_, printed):
        url = f"http://127.0.0.1:{printed['ports']['vast']}"
        assert printed["simulated"] is True
        assert printed["urls"] == {"vast": url}
        assert printed["environ"] == {"VASTAI_API_URL": url, "VASTAI_API_KEY": "vastai-simulated-key"}


async def test_the_table_says_that_it_is_simulated() -> None:
    process = await asyncio.create_subprocess_exec(*COMMAND, "--ionet", stdout=PIPE)
    try:
        text = "".join([(await process.stdout.readline()).decode() for _ in range(11)])
    finally:
        process.send_signal(signal.SIGTERM)
        await process.communicate()
    assert text.startswith("SIMULATED services")
    assert "export IONET_API_KEY=ionet-simulated-key" in text
    assert "vast" not in text


async def test_a_port_in_use_is_named_with_its_process() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, text = await refused("--vast", str(port))
    assert code == 1
    assert f"cannot listen on 127.0.0.1:{port}" in text
    assert f"Process {os.getpid()}" in text
    assert "--vast" in text


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("--host", "0.0.0.0"), "allowed are addresses of this machine alone"),
        (("--host", "example.com"), "allowed are addresses of this machine alone"),
        (("--vast", "70000"), "allowed are ports from 0"),
        (("--vast", "23601", "--ionet", "23601"), "port 23601 is given to two services"),
        (("--credit", "much"), "--credit: 'much' is no amount"),
        (("--speed", "-1"), "--speed -1.0: allowed are 0 to 100000"),
        (("--speed", "nan"), "--speed nan: allowed are"),
        (("--start-s", "1e9"), "--start-s"),
        (("--offers", "0"), "--offers 0: allowed are 1 to 2000"),
    ],
)
async def test_wrong_arguments_are_refused(arguments: tuple[str, ...], part: str) -> None:
    code, text = await refused(*arguments)
    assert code == 2
    assert part in text


@pytest.mark.parametrize(
    ("host", "is_own"),
    [
        *(("127.0.0.1", True), ("127.1.2.3", True), ("::1", True), ("localhost", True)),
        *(("", False), ("::", False), ("10.0.0.1", False), ("localhost.example.com", False)),
    ],
)
def test_only_addresses_of_this_machine_are_loopback(host: str, is_own: bool) -> None:
    assert is_loopback(host) is is_own
