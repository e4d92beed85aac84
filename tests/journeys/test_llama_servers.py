"""The real llama-server of the journeys does what they rely on.

Known answers, visible slots, and an end when it is told.
"""

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.journeys.llama_servers import HELLO, LlamaServer, long_body
from tests.journeys.running import until
from tests.tools.tiny_models import CONTEXT, LORA_REPLY, MAKERS, REPLY, REPLY_TOKENS, ensure


async def ask(server: LlamaServer, path: str = "/v1/chat/completions", **body: Any) -> Any:
    async with aiohttp.ClientSession() as session, session.post(server.url + path, json=body) as response:
        return await response.json()


async def test_any_chat_gets_the_known_reply(llama) -> None:
    server = await llama()
    for temperature in (0, 0.5, 1):
        value = await ask(
            server,
            messages=[*HELLO, {"role": "assistant", "content": REPLY}, *HELLO],
            temperature=temperature,
        )
        assert (
            value["model"],
            value["choices"][0]["message"]["content"],
            value["choices"][0]["finish_reason"],
        ) == ("tiny", REPLY, "stop")
        assert value["usage"]["completion_tokens"] == REPLY_TOKENS


async def test_an_adapter_works_for_the_requests_that_ask_for_it(llama) -> None:
    server = await llama(lora=True)
    for scale, reply in ((1, LORA_REPLY), (0, REPLY)):
        value = await ask(server, messages=HELLO, lora=[{"id": 0, "scale": scale}])
        assert value["choices"][0]["message"]["content"] == reply
    assert (await ask(server, messages=HELLO))["choices"][0]["message"]["content"] == REPLY


async def test_a_demanded_call_and_a_schema_are_kept(llama) -> None:
    server = await llama()
    parameters = {
        "type": "object",
        "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
        "required": ["city", "days"],
    }
    tools = [{"type": "function", "function": {"name": "weather", "parameters": parameters}}]
    choice = (await ask(server, messages=HELLO, tools=tools, tool_choice="required"))["choices"][0]
    assert (choice["finish_reason"], choice["message"]["tool_calls"][0]["function"]["name"]) == (
        "tool_calls",
        "weather",
    )
    assert json.loads(choice["message"]["tool_calls"][0]["function"]["arguments"])["city"] == REPLY
    choice = (await ask(server, messages=HELLO, tools=tools))["choices"][0]
    assert (choice["finish_reason"], choice["message"]["content"]) == ("stop", REPLY)
    value = await ask(
        server,
        messages=HELLO,
        response_format={"type": "json_schema", "json_schema": {"name": "w", "schema": parameters}},
    )
    assert set(json.loads(value["choices"][0]["message"]["content"])) == {"city", "days"}


async def test_embeddings_and_rerank_scores_are_meaningful(llama) -> None:
    server, ranker = await llama(embeddings=True), await llama(rerank=True)
    data = (await ask(server, "/v1/embeddings", input=["hello you", "hello yo", "zzzzz"]))["data"]
    vectors = [entry["embedding"] for entry in data]
    assert {len(vector) for vector in vectors} == {64}
    alike, different = (sum(a * b for a, b in zip(vectors[0], vector, strict=True)) for vector in vectors[1:])
    assert alike > different + 0.2
    results = (await ask(ranker, "/v1/rerank", query="hello", documents=["hello you", "zzz"]))["results"]
    assert sorted(result["index"] for result in results) == [0, 1]


async def test_slots_are_free_again_when_the_client_leaves(llama) -> None:
    server = await llama(slots=2)
    assert [slot["n_ctx"] for slot in server.slots()] == [CONTEXT, CONTEXT]
    async with aiohttp.ClientSession() as session:
        answers = [
            await session.post(server.url + "/v1/chat/completions", json=long_body(8000)) for _ in range(2)
        ]
        assert await until(lambda: server.busy() == 2)
        for left, answer in zip((1, 0), answers, strict=True):
            answer.close()
            assert await until(lambda left=left: server.busy() == left, seconds=2)


async def test_a_long_body_gives_as_many_tokens_as_it_says(llama) -> None:
    value = await ask(await llama(), **long_body(200, stream=False))
    assert (value["usage"]["completion_tokens"], value["choices"][0]["finish_reason"]) == (200, "length")


async def test_kill9_cuts_the_stream_and_restart_keeps_the_address(llama) -> None:
    server = await llama()
    url, pid = server.url, server.pid
    async with (
        aiohttp.ClientSession() as session,
        session.post(url + "/v1/chat/completions", json=long_body(8000)) as response,
    ):
        await response.content.readany()
        server.kill9()
        with pytest.raises(aiohttp.ClientPayloadError):
            await response.content.read()
    assert not server.runs
    assert not server.is_healthy()
    await server.restart()
    assert (server.url, server.pid != pid) == (url, True)
    assert (await ask(server, messages=HELLO))["choices"][0]["message"]["content"] == REPLY
    await server.terminate()
    assert not server.runs


async def test_a_paused_server_is_silent_until_it_is_resumed(llama) -> None:
    server = await llama()
    server.pause()
    asking = asyncio.create_task(ask(server, messages=HELLO))
    done, _ = await asyncio.wait([asking], timeout=0.3)
    assert not done
    server.resume()
    assert (await asking)["choices"][0]["message"]["content"] == REPLY


async def test_with_a_key_it_answers_only_clients_that_have_it(llama) -> None:
    server = await llama(api_key="sk-engine")
    assert (await ask(server, messages=HELLO))["error"]["code"] == 401
    assert server.busy() == 0
    assert b"sk-engine" not in Path(f"/proc/{server.pid}/cmdline").read_bytes()


async def test_one_that_cannot_start_is_an_error_with_its_log(llama) -> None:
    with pytest.raises(AssertionError, match=r"ended with \d+:\n[^$]*--no-such-option"):
        await llama(extra=("--no-such-option",))


async def test_no_server_outlives_the_run_that_started_it(
    llama_binary: str, tiny_models: Path, tmp_path: Path
) -> None:
    script = f"""
import asyncio, os, pathlib
from tests.journeys.llama_servers import LlamaServer
command = [{llama_binary!r}, "-m", {str(tiny_models / "tiny-chat.gguf")!r}, "--host", "127.0.0.1"]
server = LlamaServer(command, pathlib.Path({str(tmp_path / "log")!r}))
asyncio.run(server.start())
print(server.pid, flush=True)
os._exit(9)
"""
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 9, done.stderr
    assert await until(lambda: not is_alive(int(done.stdout)))


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_the_same_source_gives_the_same_models(tiny_models: Path, tmp_path: Path) -> None:
    again = ensure(tmp_path / "models")
    files = sorted(
        path.relative_to(again) for path in again.rglob("*") if path.is_file() and path.name != ".lock"
    )
    assert {name.parts[0] for name in files} == set(MAKERS)
    for name in files:
        assert (again / name).read_bytes() == (tiny_models / name).read_bytes(), name


def test_what_is_missing_is_made_and_what_is_there_is_left(tiny_models: Path, tmp_path: Path) -> None:
    (tmp_path / "tiny-chat.gguf").write_text("mine")
    (tmp_path / ".new-tiny-hf").mkdir()  # a run that was broken off left it
    ensure(tmp_path)
    assert (tmp_path / "tiny-chat.gguf").read_text() == "mine"
    assert (tmp_path / "tiny-hf" / "config.json").read_bytes() == (
        tiny_models / "tiny-hf" / "config.json"
    ).read_bytes()
    assert not (tmp_path / ".new-tiny-hf").exists()
