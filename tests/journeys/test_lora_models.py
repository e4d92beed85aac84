"""LoRA adapters on models that the appliance runs itself, with real llama-servers: by planned restarts."""

import asyncio
import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from appliance.reload import Reloader
from tests.journeys.llama_servers import HELLO, long_body
from tests.journeys.running import Running, until
from tests.journeys.test_backends import ask
from tests.tools.tiny_models import LORA_REPLY, REPLY


@pytest.fixture
def folder(tmp_path: Path, tiny_models: Path) -> Path:
    """A folder of the operator's with the adapter in it, which is allowed."""
    path = tmp_path / "adapters"
    path.mkdir()
    shutil.copy(tiny_models / "tiny-lora.gguf", path / "style.gguf")
    return path


@pytest.fixture
def table(tmp_path: Path, tiny_models: Path, llama_binary: str, folder: Path) -> dict[str, str]:
    """Variables for two models of our own."""
    config = tmp_path / "config.json"
    params = {"n_ctx": 8192, "parallel_override": 2}
    config.write_text(
        json.dumps(
            {
                "system": {
                    "llama_server_path": llama_binary,
                    "base_models_path": str(tiny_models),
                    "cpu_threads": 1,
                    "flash_attention": "off",
                },
                "models": {
                    "tiny": {"model_path": "tiny-chat.gguf", "params": params},
                    "embed": {"model_path": "tiny-embed.gguf", "params": {"n_ctx": 512, "embedding": True}},
                },
            }
        )
    )
    return {
        "CONFIG_PATH": str(config),
        "LORA_ALLOWED_DIRS": str(folder),
        "LB_OVERFLOW": "",
        "QUEUE_TIMEOUT_S": "20",
    }


async def say(running: Running, model: str, **more: Any) -> tuple[int, str]:
    status, _, value = await ask(running, {"model": model, "messages": HELLO, **more})
    return status, value["choices"][0]["message"]["content"] if status == 200 else value["error"]["code"]


async def load(running: Running, path: Path | str, name: str = "style", **more: Any) -> tuple[int, Any]:
    status, _, value = await ask(
        running, {"lora_name": name, "lora_path": str(path), **more}, path="/v1/load_lora_adapter"
    )
    return status, value


async def unload(running: Running, name: str = "style", **more: Any) -> tuple[int, Any]:
    status, _, value = await ask(running, {"lora_name": name, **more}, path="/v1/unload_lora_adapter")
    return status, value


async def listed(running: Running) -> dict[str, Any]:
    return {row["id"]: row for row in (await ask(running, path="/v1/lora_adapters", method="GET"))[2]["data"]}


def pid(running: Running, alias: str = "tiny") -> int:
    assert running.appliance.manager is not None
    return next(
        (runner.pid for runner in running.appliance.manager.model(alias).runners if runner.status == "ready"),
        0,
    )


async def test_an_adapter_is_loaded_used_kept_and_unloaded(start, table, folder: Path) -> None:
    first = await start(**table)
    assert await say(first, "tiny") == (200, REPLY)
    former = pid(first)
    assert (await say(first, "style"))[0] == 404
    status, value = await load(first, folder / "style.gguf", base_model="tiny")
    assert (status, value["base_model"], value["backends"]) == (
        200,
        "tiny",
        [{"backend": "models", "kind": "managed", "state": "loaded", "detail": ""}],
    )
    assert pid(first) not in {0, former}  # the planned restart
    assert await say(first, "style") == (200, LORA_REPLY)
    assert await say(first, "tiny") == (200, REPLY)
    assert (await ask(first, {"model": "style", "messages": HELLO}))[2]["model"] == "style"
    rows = {row["id"]: row for row in (await ask(first, path="/v1/models", method="GET"))[2]["data"]}
    assert (rows["style"]["parent"], rows["style"]["owned_by"], "parent" in rows["tiny"]) == (
        "tiny",
        "user",
        False,
    )
    assert (await listed(first))["style"]["state"] == "loaded"
    metrics = (await ask(first, path="/metrics", method="GET"))[2]
    assert 'appliance_lora_loaded{adapter="style",backend="models",state="loaded"} 1.0' in metrics

    second = await start(**table)  # of the same state folder
    assert await say(second, "style") == (200, LORA_REPLY)
    assert await say(second, "tiny") == (200, REPLY)
    assert second.appliance.manager.counts().loads == 1  # it came up with the adapter at once
    status, value = await unload(second)
    assert (status, value["backends"]) == (200, [])
    assert await say(second, "style") == (404, "model_not_found")
    assert await say(second, "tiny") == (200, REPLY)
    assert await listed(second) == {}
    third = await start(**table)
    assert await listed(third) == {}


async def test_running_requests_end_and_queued_ones_wait_for_the_restart(start, table, folder: Path) -> None:
    running = await start(**table)
    long = asyncio.create_task(ask(running, {**long_body(1500), "model": "tiny", "stream": False}))
    assert await until(lambda: running.appliance.manager.queues()[0].current_processing == 1, seconds=20)
    loading = asyncio.create_task(load(running, folder / "style.gguf", base_model="tiny"))
    await asyncio.sleep(0.1)
    waiting = [asyncio.create_task(say(running, "tiny")) for _ in range(4)]
    status, _, value = await long
    assert (status, value["usage"]["completion_tokens"]) == (200, 1500)
    assert (await loading)[0] == 200
    assert {await one for one in waiting} == {(200, REPLY)}
    assert await say(running, "style") == (200, LORA_REPLY)


async def test_each_request_gets_its_own_adapter_in_every_dialect(start, table, folder: Path) -> None:
    running = await start(**table)
    await load(running, folder / "style.gguf", base_model="tiny")
    names = ["tiny", "style"] * 10
    assert [(await one)[1] for one in [asyncio.create_task(say(running, name)) for name in names]] == [
        REPLY,
        LORA_REPLY,
    ] * 10
    status, _, value = await ask(
        running, {"model": "style", "messages": HELLO, "stream": False}, path="/api/chat"
    )
    assert (status, value["message"]["content"]) == (200, LORA_REPLY)
    status, headers, text = await ask(running, {"model": "style", "messages": HELLO, "stream": True})
    pieces = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
    assert "".join(piece["choices"][0]["delta"].get("content") or "" for piece in pieces) == LORA_REPLY
    # Passthrough changes no body: the base model would answer there.
    status, _, value = await ask(running, {"model": "style", "prompt": "x"}, path="/completion")
    assert (status, value["error"]["code"]) == (400, "not_supported")


async def test_a_killed_model_comes_back_with_its_adapter(start, table, folder: Path) -> None:
    running = await start(**table)
    await load(running, folder / "style.gguf", base_model="tiny")
    for _ in range(2):
        os.kill(pid(running), signal.SIGKILL)
        answers = await asyncio.gather(*(say(running, name) for name in ["style", "tiny"] * 4))
        assert answers == [(200, LORA_REPLY), (200, REPLY)] * 4


@pytest.mark.parametrize(
    ("what", "code", "words"),
    [
        ("garbage", "adapter_unusable", "Cannot read the adapter"),
        ("a model", "adapter_unusable", "of kind 'model'"),
        ("nothing", "adapter_not_found", "File not found"),
        ("an empty folder", "adapter_not_found", "no .gguf file"),
    ],
)
async def test_an_invalid_file_is_refused_before_anything_is_stopped(
    start,
    table,
    folder: Path,
    tiny_models: Path,
    what,
    code,
    words,
) -> None:
    path = folder / "bad.gguf"
    if what == "garbage":
        path.write_bytes(b"no adapter at all")
    elif what == "a model":
        shutil.copy(tiny_models / "tiny-chat.gguf", path)
    elif what == "an empty folder":
        path = folder / "empty"
        path.mkdir()
    running = await start(**table)
    assert await say(running, "tiny") == (200, REPLY)
    former = pid(running)
    status, value = await load(running, path, base_model="tiny")
    assert (status, value["error"]["code"]) == (400, code)
    assert words in value["error"]["message"]
    assert (pid(running), await listed(running)) == (former, {})


async def test_an_adapter_that_cannot_be_loaded_is_rolled_back(start, table, folder: Path) -> None:
    """Its header is valid, and the rest is missing: only the llama-server sees that."""
    whole = (folder / "style.gguf").read_bytes()
    (folder / "torn.gguf").write_bytes(whole[: len(whole) - 6000])
    running = await start(**table)
    assert await say(running, "tiny") == (200, REPLY)
    status, value = await load(running, folder / "torn.gguf", "torn", base_model="tiny")
    assert status >= 400, value
    assert await listed(running) == {}
    assert await say(running, "tiny") == (200, REPLY)
    assert await say(running, "torn") == (404, "model_not_found")


async def test_names_and_paths_are_checked(start, table, folder: Path, tmp_path: Path) -> None:
    running = await start(**table)
    (folder / "link.gguf").symlink_to("/etc/passwd")
    for path in (
        "/etc/passwd",
        f"{folder}/../secret.gguf",
        "style.gguf",
        str(folder),
        f"{folder}-beside/a.gguf",
        str(folder / "link.gguf"),
        f"{folder}/a\nb.gguf",
        "org/adapter",
    ):
        status, value = await load(running, path, base_model="tiny")
        assert (status, value["error"]["code"]) in {(403, "path_not_allowed"), (400, "invalid_path")}, path
    for name in ("", "a,b", "a\nb", "..", "a/../b", "/a", " a", "x" * 129):
        status, value = await load(running, folder / "style.gguf", name, base_model="tiny")
        assert (status, value["error"]["code"]) in {
            (400, "invalid_name"),
            (400, "missing_required_parameter"),
        }, name
    status, value = await load(running, folder / "style.gguf", "tiny", base_model="tiny")
    assert (status, value["error"]["code"]) == (409, "adapter_exists")
    status, value = await load(running, folder / "style.gguf", base_model="unknown")
    assert (status, value["error"]["code"]) == (404, "model_not_found")
    status, value = await load(running, folder / "style.gguf")  # there are two models
    assert (status, value["error"]["code"]) == (409, "base_model_needed")
    status, value = await load(running, folder / "style.gguf", base_model="embed")
    assert (status, value["error"]["code"]) == (400, "adapter_unusable")
    status, value = await unload(running)
    assert (status, value["error"]["code"]) == (404, "no_such_adapter")
    status, _, value = await ask(running, {"lora_name": "x"}, path="/v1/load_lora_adapter")
    assert (status, value["error"]["param"]) == (400, "lora_path")
    status, _, value = await ask(
        running,
        {"lora_name": "x", "source": "gopher://a/b", "base_model": "tiny"},
        path="/v1/load_lora_adapter",
    )
    assert (status, value["error"]["param"]) == (400, "source")


async def test_another_file_under_the_same_name_is_a_conflict(start, table, folder: Path) -> None:
    running = await start(**table)
    shutil.copy(folder / "style.gguf", folder / "other.gguf")
    assert (await load(running, folder / "style.gguf", base_model="tiny"))[0] == 200
    former = pid(running)
    status, value = await load(running, folder / "style.gguf", base_model="tiny")
    assert (status, value["message"], pid(running)) == (200, "The adapter 'style' is already loaded.", former)
    status, value = await load(running, folder / "other.gguf", base_model="tiny")
    assert (status, value["error"]["code"]) == (409, "adapter_exists")
    assert (await load(running, folder / "other.gguf", "second", base_model="tiny"))[0] == 200
    assert [await say(running, name) for name in ("style", "second", "tiny")] == [
        (200, LORA_REPLY),
        (200, LORA_REPLY),
        (200, REPLY),
    ]
    assert (await unload(running, "style"))[0] == 200
    assert [(await say(running, name))[1] for name in ("style", "second", "tiny")] == [
        "model_not_found",
        LORA_REPLY,
        REPLY,
    ]


async def test_only_operators_may_change_adapters(start, table, folder: Path) -> None:
    running = await start(**table, APPLIANCE_API_KEYS="client-key", OPERATOR_API_KEYS="operator-key")
    for key, wanted in (("client-key", 403), ("operator-key", 200)):
        headers = {"Authorization": f"Bearer {key}"}
        body = {"lora_name": "style", "lora_path": str(folder / "style.gguf"), "base_model": "tiny"}
        assert (await ask(running, body, path="/v1/load_lora_adapter", headers=headers))[0] == wanted
        assert (await ask(running, path="/v1/lora_adapters", method="GET", headers=headers))[0] == wanted
        assert (await ask(running, {"lora_name": "style"}, path="/v1/unload_lora_adapter", headers=headers))[
            0
        ] == wanted


async def test_adapters_of_the_configuration_file_come_and_go(
    start, table: dict[str, str], folder: Path
) -> None:
    config = Path(table["CONFIG_PATH"])
    content = json.loads(config.read_text())
    row = {"name": "style", "path": str(folder / "style.gguf"), "base_model": "tiny"}
    config.write_text(json.dumps({**content, "adapters": [row]}))
    running = await start(**table)
    reloader = Reloader(running.appliance)
    assert await say(running, "style") == (200, LORA_REPLY)
    assert await say(running, "tiny") == (200, REPLY)
    config.write_text(json.dumps(content))
    result = await reloader.reload({}, dry_run=False)
    assert [change.new for change in result.changes] == ["The adapter style is removed."]
    assert await until(lambda: "style" not in running.appliance.adapters.table.declared, seconds=20)
    assert (await say(running, "style"))[0] == 404
    config.write_text(json.dumps({**content, "adapters": [row | {"name": "other"}]}))
    await reloader.reload({}, dry_run=False)
    assert await say(running, "other") == (200, LORA_REPLY)
