"""Pulling a model by the official Ollama client, into the whole appliance with a real llama-server."""

import asyncio
import hashlib
import os
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import ollama
import pytest
from aiohttp import web

from tests.cli.test_ctl_backends import Terminal
from tests.journeys.running import Running, free_port, until
from tests.tools.tiny_models import REPLY

NAME = "hf.co/ns/tiny:Q4_K_M"
COMMIT = "c" * 40
HELLO = [{"role": "user", "content": "hello"}]


class Hub:
    """Serves Hugging Face's API for a repository. `held`: half of a file is sent, the rest when released."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files
        self.go_on = asyncio.Event()
        self.go_on.set()
        self.sent_bytes = 0
        self.url = ""

    async def info(self, request: web.Request) -> web.Response:
        return web.json_response(
            {
                "id": "ns/tiny",
                "modelId": "ns/tiny",
                "sha": COMMIT,
                "private": False,
                "tags": [],
                "downloads": 0,
                "siblings": [],
            }
        )

    async def tree(self, request: web.Request) -> web.Response:
        return web.json_response(
            [
                {
                    "type": "file",
                    "path": path,
                    "size": len(data),
                    "oid": hashlib.sha1(data).hexdigest(),
                    "lfs": {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134},
                }
                for path, data in self.files.items()
            ]
        )

    async def file(self, request: web.Request) -> web.StreamResponse:
        data = self.files[request.match_info["path"]]
        asked = request.http_range
        start, stop = asked.start or 0, asked.stop if asked.stop is not None else len(data)
        headers = {
            "ETag": f'"{hashlib.sha256(data).hexdigest()}"',
            "Content-Length": str(stop - start),
            "Accept-Ranges": "bytes",
        }
        if "Range" in request.headers:
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(data)}"
        answer = web.StreamResponse(status=206 if "Range" in request.headers else 200, headers=headers)
        await answer.prepare(request)
        half = start + (stop - start) // 2
        for piece in (data[start:half], data[half:stop]):
            await answer.write(piece)
            self.sent_bytes += len(piece)
            await self.go_on.wait()
        return answer


@pytest.fixture
async def hub(tiny_models: Path) -> AsyncIterator[Hub]:
    data = (tiny_models / "tiny-chat.gguf").read_bytes()
    hub = Hub({"tiny.Q4_K_M.gguf": data, "tiny.Q8_0.gguf": data + b"\0" * 64, "README.md": b"# tiny"})
    app = web.Application()
    app.add_routes(
        [
            web.get("/api/models/ns/tiny/revision/{revision}", hub.info),
            web.get("/api/models/ns/tiny/tree/{revision}", hub.tree),
            web.get("/api/models/ns/tiny", hub.info),
            web.get("/ns/tiny/resolve/{revision}/{path:.+}", hub.file),
        ]
    )
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    hub.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield hub
    hub.go_on.set()
    await runner.cleanup()


def client(base_url: str) -> ollama.AsyncClient:
    return ollama.AsyncClient(host=base_url, timeout=60)


async def test_a_model_is_pulled_serves_and_is_removed(
    start: Callable[..., Any], llama_binary: str, hub: Hub, tmp_path: Path
) -> None:
    running: Running = await start(LLAMA_SERVER_PATH=llama_binary, HF_ENDPOINT=hub.url)
    ours = client(running.base_url)
    lines = [part async for part in await ours.pull(NAME, stream=True)]
    digest = hashlib.sha256(hub.files["tiny.Q4_K_M.gguf"]).hexdigest()
    size = len(hub.files["tiny.Q4_K_M.gguf"])
    assert [line.status for line in lines if not line.status.startswith(f"pulling {digest[:12]}")] == [
        "pulling manifest",
        "verifying sha256 digest",
        "writing manifest",
        "success",
    ]
    assert {(line.digest, line.total) for line in lines if line.digest} == {(f"sha256:{digest}", size)}
    assert lines[-4].completed == size
    assert hub.sent_bytes == size
    folder = tmp_path / "state" / "models" / "hf.co" / "ns" / "tiny" / "Q4_K_M"
    assert [path.name for path in folder.glob("*.gguf")] == ["tiny.Q4_K_M.gguf"]
    models = {model.model: model for model in (await ours.list()).models}
    assert (models[NAME].size, models[NAME].details.format) == (size, "gguf")
    assert (await ours.chat(model=NAME, messages=HELLO)).message.content == REPLY
    assert (await ours.pull(NAME)).status == "success"
    assert hub.sent_bytes == size  # it was there
    assert NAME in {model.model for model in (await ours.ps()).models}
    assert (await ours.chat(model="gpt-4o", messages=HELLO)).message.content == REPLY  # any name means it
    with pytest.raises(ollama.ResponseError, match="not found"):
        await ours.show("hf.co/ns/other:Q4_K_M")  # but this one can be pulled: `ollama run` looks first
    assert (await ours.delete(NAME)).status == "success"
    assert not folder.exists()
    assert NAME not in {model.model for model in (await ours.list()).models}
    with pytest.raises(ollama.ResponseError, match="not found"):
        await ours.delete(NAME)


async def test_a_killed_pull_goes_on_at_the_next_start(
    spawn: Callable[..., Any], llama_binary: str, hub: Hub
) -> None:
    variables = {"LLAMA_SERVER_PATH": llama_binary, "HF_ENDPOINT": hub.url}
    hub.go_on.clear()
    first = await asyncio.to_thread(spawn, **variables)
    pulling = asyncio.create_task(client(first.base_url).pull(NAME))
    assert await until(lambda: hub.sent_bytes > 0, seconds=20)
    await asyncio.sleep(0.3)
    first.process.send_signal(signal.SIGKILL)
    await asyncio.to_thread(first.process.wait)
    with pytest.raises((ConnectionError, httpx.HTTPError, ollama.ResponseError)):
        await pulling
    hub.go_on.set()
    second = await asyncio.to_thread(spawn, **variables)
    async with httpx.AsyncClient(base_url=second.base_url, timeout=20) as http:
        for _ in range(200):
            jobs = (await http.get("/v1/jobs")).json()["jobs"]
            if jobs[0]["state"] == "completed":
                break
            await asyncio.sleep(0.05)
        assert [(job["state"], job["source"], job["model"]) for job in jobs] == [
            ("completed", "hf://ns/tiny", NAME)
        ]
    assert (await client(second.base_url).chat(model=NAME, messages=HELLO)).message.content == REPLY
    second.process.terminate()  # a STATE_DIR has one appliance at a time
    await asyncio.to_thread(second.process.wait)
    third = await asyncio.to_thread(spawn, **variables)  # and is in the table of any later start
    assert NAME in {model.model for model in (await client(third.base_url).list()).models}


async def test_what_the_hub_does_not_have_is_said_as_ollama_says_it(
    start: Callable[..., Any], hub: Hub
) -> None:
    running: Running = await start(HF_ENDPOINT=hub.url)
    for name, text in (
        ("hf.co/ns/tiny:Q2_K", "The specified tag is not available"),
        ("hf.co/ns/nobody", "does not have it"),
    ):
        with pytest.raises(ollama.ResponseError, match=f"pull model manifest: .*{text}") as caught:
            await client(running.base_url).pull(name)
        assert caught.value.status_code == 404


async def test_http_sidecar_and_terminal_share_one_folder(
    start: Callable[..., Any], hub: Hub, tmp_path: Path
) -> None:
    port = free_port()
    running: Running = await start(HF_ENDPOINT=hub.url, SIDECAR_PORT=str(port))
    terminal = Terminal(running)
    folder = tmp_path / "state" / "models" / "a"
    asked = {"source": "ns/tiny", "output_dir": "a", "config": {"include": "*.md,*Q4*"}}
    async with httpx.AsyncClient(timeout=30) as http:
        answer = await http.post(f"http://127.0.0.1:{port}/v1/download_model", json=asked)
        assert (answer.status_code, answer.json()["status"], answer.json()["files"]) == (200, "completed", 2)
        assert {path.name for path in folder.iterdir() if path.is_file()} >= {"README.md", "tiny.Q4_K_M.gguf"}
        answer = await http.post(
            f"http://127.0.0.1:{port}/v1/download_model", json={"source": "ns/nobody", "output_dir": "b"}
        )
        assert (answer.status_code, answer.json()["detail"].startswith("Download failed: ")) == (500, True)
        assert (
            await http.post(f"http://127.0.0.1:{port}/v1/download_model", json={"source": "x/y"})
        ).status_code == 400
        (folder / "README.md").write_bytes(b"spoilt")
        checked = (
            await http.post(f"{running.base_url}/v1/downloads/verify", json={"output_dir": "a"})
        ).json()
        assert [flaw["path"] for flaw in checked["flaws"]] == ["README.md"]
        assert (
            await http.post(f"{running.base_url}/v1/downloads/repair", json={"output_dir": "a"})
        ).status_code == 200
        assert (await http.post(f"{running.base_url}/v1/downloads/verify", json={"output_dir": "a"})).json()[
            "ok"
        ]
    assert await terminal.run("download", "ns/tiny", "-o", "a", "-c", '{"include": "*.md"}') == 0, (
        terminal.err
    )
    assert terminal.out.splitlines()[-1].startswith(f"hf://ns/tiny is in {folder}")
    assert await terminal.run("jobs") == 0
    assert len(terminal.out.splitlines()) == 5


async def test_a_follower_does_not_hold_up_the_end(spawn: Callable[..., Any], hub: Hub) -> None:
    hub.go_on.clear()
    process = await asyncio.to_thread(spawn, HF_ENDPOINT=hub.url, SHUTDOWN_GRACE_S="30")
    async with httpx.AsyncClient(base_url=process.base_url, timeout=20) as http:
        waiting = asyncio.create_task(
            http.post("/v1/download_model", json={"source": "ns/tiny", "output_dir": "a"})
        )
        assert await until(lambda: hub.sent_bytes > 0, seconds=20)
        job_id = (await http.get("/v1/jobs")).json()["jobs"][0]["id"]
        following = asyncio.create_task(http.get(f"/v1/jobs/{job_id}/stream"))
        await asyncio.sleep(0.2)
        os.kill(process.process.pid, signal.SIGTERM)
        assert await asyncio.to_thread(process.process.wait, 15) == 0
        answer, feed = await waiting, await following
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "shutting_down")
        assert feed.text.rstrip().splitlines()[-2] == "event: interrupted"


async def test_a_reload_changes_folders_and_hosts(
    start: Callable[..., Any], hub: Hub, tmp_path: Path
) -> None:
    running: Running = await start(HF_ENDPOINT="http://127.0.0.1:9")
    terminal, folder = Terminal(running), tmp_path / "elsewhere"
    wanted = ("download", "ns/tiny", "-o", str(folder), "-c", '{"include": "*.md"}')
    assert await terminal.run(*wanted) == 4
    assert (
        await terminal.run(
            "reload", "--set", f"DOWNLOAD_ALLOWED_DIRS={folder}", "--set", f"HF_ENDPOINT={hub.url}"
        )
        == 0
    ), terminal.err
    assert await terminal.run(*wanted) == 0, terminal.err
    assert (folder / "README.md").read_bytes() == b"# tiny"
