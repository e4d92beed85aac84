"""etc/nginx.conf in a real nginx, in front of a real appliance: it asks for the key, and holds nothing back."""

import asyncio
import json
import re
import subprocess
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
import openai
import pytest

from tests.fakes.mirror import QUICK, Mirror
from tests.journeys.running import Running, free_port, until

CONF = Path(__file__).parents[2] / "etc" / "nginx.conf"
KEY = "edge-key-1234567"
SIGNED = {"Authorization": f"Bearer {KEY}"}


@dataclass
class Edge:
    """nginx with what stands behind it."""

    url: str
    running: Running
    mirror: Mirror
    log: Path


def filled(text: str, **values: str) -> str:
    """Fill the template in as the nginx image does; a variable that nobody fills would stay in it."""
    for name, value in values.items():
        text = text.replace(f"${{{name}}}", value)
    assert not re.search(r"\$\{[A-Z_]+\}", re.sub(r"#.*", "", text))
    return text


@contextmanager
def nginx(folder: Path, *, upstream: str, key: str) -> Iterator[tuple[str, Path]]:
    port = free_port()
    server = filled(
        CONF.read_text(), EDGE_API_KEY=key, APPLIANCE_UPSTREAM=upstream, EDGE_LISTEN=f"127.0.0.1:{port}"
    )
    paths = "".join(
        f"{name}_temp_path {folder}/{name}; " for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (folder / "nginx.conf").write_text(
        f"daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log stderr; events {{}}\n"
        f"http {{ {paths}\n{server}\n}}\n"
    )
    log = folder / "nginx.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [
                "setpriv",
                "--pdeathsig",
                "TERM",
                "--",
                "nginx",
                "-p",
                str(folder),
                "-c",
                str(folder / "nginx.conf"),
            ],
            stdout=out,
            stderr=out,
        )
    try:
        yield f"http://127.0.0.1:{port}", log
    finally:
        process.terminate()
        process.wait(10)


@pytest.fixture
async def edge(start, tmp_path: Path):
    async with AsyncExitStack() as stack:
        mirror = await stack.enter_async_context(Mirror("llamacpp"))
        running = await start(BACKENDS=f"e0={mirror.url}", APPLIANCE_API_KEYS=KEY, **QUICK)
        url, log = stack.enter_context(nginx(tmp_path, upstream=urlsplit(running.base_url).netloc, key=KEY))
        assert await until(lambda: answers(url), seconds=10)
        yield Edge(url, running, mirror, log)


def answers(url: str) -> bool:
    parts = urlsplit(url)
    return (
        subprocess.run(
            ["bash", "-c", f"exec 3<>/dev/tcp/{parts.hostname}/{parts.port}"],
            capture_output=True,
            check=False,
        ).returncode
        == 0
    )


@pytest.fixture
async def session():
    async with aiohttp.ClientSession() as session:
        yield session


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": f"Bearer {KEY}x"},
        {"Authorization": KEY},
        {"Authorization": "Bearer "},
    ],
)
async def test_without_the_key_nobody_gets_in(edge: Edge, session, headers: dict[str, str]) -> None:
    async with session.post(
        edge.url + "/v1/chat/completions", json={"model": "tiny"}, headers=headers
    ) as response:
        value = await response.json(content_type=None)
        assert (response.status, value["error"]["type"], value["error"]["code"]) == (
            401,
            "authentication_error",
            "invalid_api_key",
        )
    assert edge.mirror.asked == []


async def test_without_a_key_of_its_own_it_asks_for_none(start, tmp_path: Path, session) -> None:
    running = await start()
    with nginx(tmp_path, upstream=urlsplit(running.base_url).netloc, key="") as (url, _):
        assert await until(lambda: answers(url), seconds=10)
        for headers in ({}, {"Authorization": "Bearer "}, {"Authorization": "Bearer any"}):
            async with session.get(url + "/v1/models", headers=headers) as response:
                assert response.status == 200


async def test_a_long_key_is_taken(start, tmp_path: Path, session) -> None:
    running, key = await start(), "k" * 256
    with nginx(tmp_path, upstream=urlsplit(running.base_url).netloc, key=key) as (url, _):
        assert await until(lambda: answers(url), seconds=10)
        for sent, status in ((key, 200), (key[1:], 401)):
            async with session.get(
                url + "/v1/models", headers={"Authorization": f"Bearer {sent}"}
            ) as response:
                assert response.status == status


async def test_the_official_client_passes_with_the_key(edge: Edge) -> None:
    async with openai.AsyncOpenAI(base_url=edge.url + "/v1", api_key=KEY, max_retries=0) as client:
        made = await client.chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": "hello"}]
        )
        assert made.choices[0].message.content == "Standing in."
    async with openai.AsyncOpenAI(base_url=edge.url + "/v1", api_key="wrong", max_retries=0) as client:
        with pytest.raises(openai.AuthenticationError, match="No API key, or an unknown one"):
            await client.models.list()


async def test_health_is_open_and_the_key_stays_out_of_the_logs(edge: Edge, session) -> None:
    async with session.get(edge.url + "/healthz") as response:
        assert response.status == 200
    async with session.post(
        edge.url + "/completion?secret=in-the-query", json={}, headers={**SIGNED, "X-Request-Id": "mine-7"}
    ) as response:
        seen = json.dumps(await response.json())
        assert response.headers["x-request-id"] == "mine-7"
    assert await until(lambda: "mine-7" in edge.log.read_text())
    assert "127.0.0.1" in seen
    for text in (seen, edge.log.read_text()):
        assert KEY not in text
    assert "in-the-query" not in edge.log.read_text()


async def test_an_event_is_not_held_back(edge: Edge, session) -> None:
    """The engine makes the second event only after the client has the first."""
    async with session.get(edge.url + "/act/events", headers=SIGNED) as response:
        assert await asyncio.wait_for(response.content.readuntil(b"\n\n"), 5) == b"data: one\n\n"
        edge.mirror.go.set()
        assert await asyncio.wait_for(response.content.read(), 5) == b"data: two\n\n"


async def test_an_upload_is_not_held_back(edge: Edge, session) -> None:
    async def pieces():
        yield b"x" * 100_000
        await asyncio.wait_for(edge.mirror.first.wait(), 5)
        yield b"y" * 100_000

    async with session.post(edge.url + "/act/upload", data=pieces(), headers=SIGNED) as response:
        assert (await response.json())["size"] == 200_000


async def test_a_websocket_passes(edge: Edge, session) -> None:
    async with session.ws_connect(edge.url + "/act/ws", headers=SIGNED) as ws:
        await ws.send_str("hello")
        assert await ws.receive_str(timeout=5) == "echo hello"


async def test_who_leaves_ends_the_work_behind_it(edge: Edge, session) -> None:
    response = await session.get(edge.url + "/act/events", headers=SIGNED)
    await response.content.readuntil(b"\n\n")
    response.close()
    await asyncio.wait_for(edge.mirror.gone.wait(), 2)
