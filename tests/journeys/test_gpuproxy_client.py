"""aiserve-gpuproxy-client, a process of its own, against a whole appliance that rents at stand-ins for the markets."""

import asyncio
import json
import os
import re
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import httpx
import pytest

from tests.journeys.running import Running, start  # noqa: F401 - a fixture
from tests.journeys.test_accounts import ADA, OPERATOR, PASSWORD
from tests.journeys.test_renting import http, mine, running, twin, until_destroyed

__all__ = ["http", "mine", "running", "twin"]
ROOT = Path(__file__).parents[2]
SCRIPT = "import sys; from appliance.gpuproxy_client.program import main; sys.exit(main())"
Done = tuple[int, str, str]
Client = Callable[..., Awaitable[Done]]


@pytest.fixture
def client(running: Running, tmp_path: Path) -> Client:
    """Runs the program; `key` is its GPUPROXY_API_KEY."""

    async def run(*words: str, key: str = "", stdin: str = "") -> Done:
        environ = {
            **os.environ,
            "GPUPROXY_API_URL": running.base_url,
            "GPUPROXY_API_KEY": key,
            "XDG_CONFIG_HOME": str(tmp_path),
            "PYTHONPATH": str(ROOT),
        }
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", SCRIPT, *words),
            env=environ,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await process.communicate(stdin.encode())
        assert process.returncode is not None
        return process.returncode, out.decode(), err.decode()

    return run


async def done(client: Client, *words: str, **more: str) -> str:
    code, out, err = await client(*words, **more)
    assert code == 0, err
    return out


@pytest.fixture
async def key(http: httpx.AsyncClient, mine: dict[str, str]) -> str:
    """An API key of a user with 100 dollars."""
    made: str = (await http.post("/auth/apikey", json={"name": "k"}, headers=mine)).json()["api_key"]
    return made


async def test_load_and_strategies(client: Client, key: str) -> None:
    lines = (await done(client, "load", key=key)).splitlines()
    assert lines[0] == "Strategy: least_busy"
    assert lines[2].split() == ["INSTANCE", "PROVIDER", "ACTIVE", "TOTAL", "AVG", "RT", "WEIGHT"]
    assert re.fullmatch(r"vast\.ai: [1-9]\d* available instances", lines[-2])
    assert re.fullmatch(r"io\.net: [1-9]\d* available instances", lines[-1])
    said = await done(client, "lb-strategy", "least_connections", key=OPERATOR)
    assert said == "Load balancing strategy updated: least_connections\n"
    assert await done(client, "lb-strategy", key=key) == "Current strategy: least_connections\n"
    code, _, err = await client("lb-strategy", "fastest", key=OPERATOR)
    assert (code, "fastest" in err) == (1, True)
    assert (await client("lb-strategy", "round_robin", key=key))[0] == 1  # it moves everyone's traffic


@pytest.mark.parametrize("provider", ["vast.ai", "io.net"])
async def test_an_instance_is_rented_renewed_and_ended(
    client: Client, key: str, http: httpx.AsyncClient, twin: object, provider: str
) -> None:
    lines = (await done(client, "list", provider, key=key)).splitlines()
    assert lines[0].split() == ["ID", "PROVIDER", "GPU", "COUNT", "VRAM", "PRICE/HR", "LOCATION"]
    name = lines[1].split()[0]
    bare = name.removeprefix("vast-").removeprefix("ionet-")
    assert bare != name
    said = await done(client, "create", "-lease", "30m", provider, bare, key=key)
    match = re.fullmatch(
        rf"Instance created successfully\nContract ID: (\S+)\nProvider: {provider}\nInstance ID: {name}\n",
        said,
    )
    assert match is not None
    assert match[1] in await done(client, "rentals", "-live", key=key)
    code, out, err = await client("renew", provider, match[1], "10m", key=key)
    if provider == "io.net":  # it is paid ahead
        assert (code, "was paid ahead" in err) == (1, True)
    else:
        assert out.startswith(f"Lease of {match[1]} until 20")
    assert await done(client, "destroy", provider, name, key=key) == "Instance destroyed successfully\n"
    await until_destroyed(http, twin)  # type: ignore[arg-type]


async def test_gpus_are_reserved_all_or_none(
    client: Client, key: str, http: httpx.AsyncClient, twin: object
) -> None:
    lines = (await done(client, "reserve", "-provider", "vast.ai", "2", key=key)).splitlines()
    assert lines[0] == "Reserved 2 of 2 GPUs"
    assert lines[2].split() == ["INSTANCE", "CONTRACT", "PROVIDER", "GPU", "VRAM", "PRICE"]
    for line in lines[3:5]:
        assert (await client("destroy", "vast.ai", line.split()[1], key=key))[0] == 0
    await until_destroyed(http, twin)  # type: ignore[arg-type]
    code, _, err = await client("reserve", "-max-price=0.000001", "2", key=key)
    assert (code, err.startswith("error: ")) == (1, True)


async def test_a_user_logs_in_sees_credits_and_logs_out(client: Client, mine: dict[str, str]) -> None:
    code, _, err = await client("balance")
    assert (code, "Give a key by -key or GPUPROXY_API_KEY, or log in" in err) == (1, True)
    code, _, err = await client("login", ADA["email"], stdin="not the password\n")
    assert (code, "invalid credentials" in err) == (1, True)
    await done(client, "login", ADA["email"], stdin=f"{PASSWORD}\n")
    assert "remaining  $100.00" in await done(client, "balance")
    assert json.loads(await done(client, "-json", "balance"))["credits_remaining"] == 100
    assert await done(client, "logout") == "Logged out\n"
    assert (await client("balance"))[0] == 1


async def test_refusals_of_the_markets_are_told(client: Client, key: str) -> None:
    code, _, err = await client("create", "vast.ai", "1", key=key)
    assert (code, "vast.ai has no offer '1' now" in err) == (1, True)
    code, _, err = await client("destroy", "nowhere", "1", key=key)
    assert (code, "nowhere" in err) == (1, True)
