"""Models that run by a command of the table, beside models on real llama-servers."""

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from appliance.models.manager import watchdog
from appliance.models.manager.watchdog import Watchdog
from appliance.models.runner.proc import MARK, marked_with
from appliance.models.runner.process import StopTimes
from tests.journeys.model_tables import Managed, ManagedAppliance, Stopwatch, runs
from tests.journeys.running import until
from tests.tools.tiny_engine import REPLY as ENGINE_REPLY
from tests.tools.tiny_models import REPLY

ENGINE = Path(__file__).parents[1] / "tools" / "tiny_engine.py"
pytestmark = pytest.mark.timeout(60)


def command(*more: str) -> list[str]:
    return [sys.executable, str(ENGINE), "--port", "${PORT}", *more]


def engine(*more: str, **keys: Any) -> dict[str, Any]:
    """Give a row of the table: the tiny engine with these arguments."""
    return {"command": command(*more), "memory_mb": 50, **keys}


async def test_a_command_is_loaded_asked_and_swapped_like_a_model_file(managed: Managed) -> None:
    appliance = await managed("a", "b", "any", any=engine("--name", "any"), max_concurrent_models=1)
    for _ in range(2):
        assert await appliance.chat("a") == REPLY
        assert await appliance.chat("any") == ENGINE_REPLY
        assert appliance.statuses() == {"a": "off", "b": "off", "any": "ready"}
    result = await appliance.stream("any")
    assert (result.end, result.text) == ("done", ENGINE_REPLY)
    pid = appliance.pid("any")
    assert await appliance.chat("b") == REPLY
    assert not runs(pid)
    counts = appliance.manager.counts()
    assert (counts.crashes, counts.by_model) == (0, {"a": 2, "b": 1, "any": 2})


@pytest.mark.parametrize("kind", ["openai", "llamacpp"])
async def test_a_real_server_of_openais_api_runs_by_its_command(
    managed: Managed, llama_binary: str, tiny_models: Path, kind: str
) -> None:
    """A llama-server that the table knows only by its command, with a name of its own."""
    words = [
        llama_binary,
        "-m",
        str(tiny_models / "tiny-chat.gguf"),
        "--alias",
        "org/own",
        "--port",
        "${PORT}",
    ]
    row = {
        "command": [*words, "--ctx-size", "4096", "--parallel", "2", "--threads", "1"],
        "engine_kind": kind,
        "served_model": "org/own",
        "max_concurrency": 2,
        "force": {"max_tokens": 3},
    }
    appliance = await managed("file", "own", own=row, max_concurrent_models=1)
    assert await appliance.chat("file") == REPLY
    pid = appliance.pid("file")
    status, _, value = await appliance.ask("own", max_tokens=100)
    assert (status, value["model"], value["usage"]["completion_tokens"]) == (200, "own", 3)
    assert REPLY.startswith(value["choices"][0]["message"]["content"])
    assert not runs(pid)
    results = await asyncio.gather(*(appliance.stream("own") for _ in range(4)))
    assert {result.end for result in results} == {"done"}
    status, _, value = await appliance.ask("own", path="/completion", prompt="hello", n_predict=50)
    assert (status, value["tokens_predicted"]) == (200, 3)
    pid = appliance.pid("own")
    os.kill(pid, signal.SIGKILL)  # it is loaded anew
    status, _, value = await appliance.ask("own")
    assert (status, appliance.pid("own") != pid) == (200, True)
    assert await appliance.chat("file") == REPLY
    assert appliance.statuses() == {"file": "ready", "own": "off"}


async def test_the_engine_gets_the_name_that_it_has_there(managed: Managed) -> None:
    appliance = await managed("any", any=engine("--name", "org/Model", served_model="org/Model"))
    status, _, value = await appliance.ask("any")
    assert (status, value["model"], value["choices"][0]["message"]["content"]) == (200, "any", ENGINE_REPLY)


async def test_readings_show_a_command(managed: Managed) -> None:
    appliance = await managed("any", any=engine(context_tokens=32_768, max_concurrency=3))
    await appliance.chat("any")
    view = appliance.manager.model("any")
    assert (view.path, view.context_tokens, view.request_tokens, view.slots) == (None, 32_768, 32_768, 3)
    assert view.estimate_bytes == 50 << 20
    assert view.runners[0].log_path is not None
    assert "tiny engine begins" in view.runners[0].log_path.read_text()
    base_url, session = appliance.running.base_url, appliance.session
    for path in ("/v1/models/any", "/v1/models/status/any", "/api/tags", "/api/ps", "/vram", "/metrics"):
        async with session.get(base_url + path) as response:
            assert response.status == 200, path
            assert "None" not in await response.text() or path == "/metrics", path
    async with session.get(base_url + "/v1/models/any") as response:
        assert (await response.json())["n_ctx"] == 32_768
    async with session.post(base_url + "/api/show", json={"model": "any"}) as response:
        shown = await response.json()
    assert "FROM any" in shown["modelfile"]
    assert shown["parameters"].split() == ["num_ctx", "32768"]


@pytest.mark.parametrize(
    "how",
    [
        engine("--load-s", "0.4"),
        engine("--load-s", "0.2", "--no-health"),
        engine("--load-s", "0.2", health_path="/ready"),
        engine("--only-tcp", health_path="none"),
    ],
)
async def test_each_way_to_be_ready(managed: Managed, how: dict[str, Any]) -> None:
    appliance = await managed("any", any=how)
    assert await appliance.chat("any") == ENGINE_REPLY


async def test_a_shell_that_is_asked_for_is_ended_with_its_engine(managed: Managed) -> None:
    """The words name no port: the shell reads the variable."""
    line = f"'{sys.executable}' '{ENGINE}' & wait"
    appliance = await managed("any", any={"command": ["sh", "-c", line]})
    assert await appliance.chat("any") == ENGINE_REPLY
    mark = marks_of(appliance)
    assert len(marked_with(MARK, mark)) == 2
    await appliance.manager.eject("any")
    assert marked_with(MARK, mark) == []


async def test_an_engine_that_left_its_session_is_ended_too(managed: Managed) -> None:
    line = f"setsid '{sys.executable}' '{ENGINE}' & wait"
    appliance = await managed("any", any={"command": ["sh", "-c", line]})
    assert await appliance.chat("any") == ENGINE_REPLY
    mark = marks_of(appliance)
    assert len(marked_with(MARK, mark)) == 2
    await appliance.manager.eject("any")
    assert marked_with(MARK, mark) == []


async def test_an_engine_whose_script_went_away_is_ended(managed: Managed, tmp_path: Path) -> None:
    noted = tmp_path / "mark"
    line = f"echo $APPLIANCE_PROCESS > '{noted}'; setsid sleep 500 & exec sleep 0.3"
    appliance = await managed("any", any={"command": ["sh", "-c", line]}, model_load_max_retries=0)
    status, _, _ = await appliance.ask("any")
    assert status == 503
    assert marked_with(MARK, noted.read_text().strip()) == []


def marks_of(appliance: ManagedAppliance) -> str:
    environ = Path(f"/proc/{appliance.pid('any')}/environ").read_bytes().decode()
    return dict(pair.partition("=")[::2] for pair in environ.split("\0"))[MARK]


# ---- what goes wrong


async def test_one_that_exits_at_once_says_why_and_is_given_up(managed: Managed) -> None:
    appliance = await managed("a", "any", any=engine("--exit-at-once"), model_load_max_retries=1)
    status, _, value = await appliance.ask("any")
    assert (status, value["error"]["code"]) == (503, "model_failed")
    name = Path(sys.executable).name
    assert f"{name} exited with code 3: there is no luck today" in value["error"]["message"]
    assert appliance.status("any") == "failed"
    assert appliance.manager.failed_models()[0].attempts == 2
    assert await appliance.chat("a") == REPLY


async def test_one_that_is_never_ready_is_ended_at_its_limit(managed: Managed) -> None:
    how = engine("--never-ready", ready_timeout_sec=1)
    appliance = await managed("any", any=how, model_load_max_retries=0)
    watch = Stopwatch()
    status, _, value = await appliance.ask("any")
    assert (status, watch.s < 5) == (503, True)
    assert "it was not ready within 1 s (ready_timeout_sec)" in value["error"]["message"]
    assert appliance.runners("any") == []


async def test_one_that_exits_while_it_loads_is_tried_again(managed: Managed, tmp_path: Path) -> None:
    first = f'[ -e {tmp_path}/again ] || {{ touch {tmp_path}/again; sleep 0.2; exit 5; }}; exec "$@"'
    appliance = await managed("any", any={"command": ["sh", "-c", first, "sh", *command()]})
    assert await appliance.chat("any") == ENGINE_REPLY
    assert (appliance.manager.counts().loads, appliance.manager.counts().loaded) == (2, 1)


async def test_one_that_crashes_at_a_request_is_loaded_again(managed: Managed, tmp_path: Path) -> None:
    crash = tmp_path / "crash"
    appliance = await managed("any", any=engine("--crash-file", str(crash)))
    assert await appliance.chat("any") == ENGINE_REPLY
    crash.touch()
    asked = asyncio.create_task(appliance.chat("any"))
    assert await until(lambda: appliance.manager.counts().crashes == 1)
    crash.unlink()
    assert await asked == ENGINE_REPLY


async def test_one_that_ignores_sigterm_is_killed_for_the_next(managed: Managed) -> None:
    appliance = await managed("a", "any", any=engine("--ignore-term"), max_concurrent_models=1)
    appliance.manager.loader.times = StopTimes(term_s=0.3, kill_s=2.0)
    assert await appliance.chat("any") == ENGINE_REPLY
    pid = appliance.pid("any")
    watch = Stopwatch()
    assert await appliance.chat("a") == REPLY
    assert 0.3 <= watch.s < 4.0
    assert not runs(pid)


async def test_a_missing_program_is_found_once_it_is_there(managed: Managed, tmp_path: Path) -> None:
    program = tmp_path / "serve"
    appliance = await managed("any", any={"command": [str(program), "${PORT}"]})
    status, _, value = await appliance.ask("any")
    assert (status, value["error"]["code"]) == (503, "model_failed")
    assert f"program not found: {program}" in value["error"]["message"]
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{ENGINE}" --port "$1"\n')
    program.chmod(0o755)
    assert await appliance.chat("any") == ENGINE_REPLY


async def test_a_busy_engine_that_answers_no_probe_is_left_alone(
    managed: Managed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watchdog, "PROBE_TIMEOUT_S", 0.05)
    monkeypatch.setattr(watchdog, "RELOAD_AFTER_S", 0.0)
    appliance = await managed("any", any=engine("--answer-s", "0.3"))
    appliance.manager.loader.times = StopTimes(term_s=0.2, kill_s=2.0)
    assert await appliance.chat("any") == ENGINE_REPLY
    pid, watched = appliance.pid("any"), Watchdog(appliance.manager)
    asked = asyncio.create_task(appliance.chat("any"))
    assert await until(lambda: appliance.active("any") == 1)
    os.kill(pid, signal.SIGSTOP)
    for _ in range(watchdog.DOWN):
        await watched.probe()
    os.kill(pid, signal.SIGCONT)
    assert (await asked, appliance.pid("any")) == (ENGINE_REPLY, pid)
    assert await appliance.is_free()
    os.kill(pid, signal.SIGSTOP)
    for _ in range(2 * watchdog.DOWN):  # idle: it hangs. It may still answer the first probe
        if runs(pid):
            await watched.probe()
    assert not runs(pid)
    assert await appliance.chat("any") == ENGINE_REPLY


# ---- how many at a time


async def test_requests_beyond_max_concurrency_wait(managed: Managed) -> None:
    appliance = await managed("any", any=engine("--answer-s", "0.05", max_concurrency=2))
    assert await appliance.chat("any") == ENGINE_REPLY
    assert await asyncio.gather(*(appliance.chat("any") for _ in range(8))) == [ENGINE_REPLY] * 8
    port = appliance.manager.model("any").port
    async with appliance.session.get(f"http://127.0.0.1:{port}/most") as response:
        assert await response.json() == {"most": 2}


# ---- groups


async def test_models_of_a_group_swap_however_much_is_free(managed: Managed) -> None:
    groups = {"one at a time": {"members": ["a", "any"], "exclusive": False}}
    appliance = await managed("a", "b", "any", any=engine(), groups=groups)
    assert [await appliance.chat(alias) for alias in ("b", "a")] == [REPLY] * 2
    assert await appliance.chat("any") == ENGINE_REPLY
    assert appliance.statuses() == {"a": "off", "b": "ready", "any": "ready"}
    said = await asyncio.gather(*(appliance.chat(alias) for alias in ["a", "any"] * 4))
    assert said == [REPLY, ENGINE_REPLY] * 4
    assert await appliance.is_free()


async def test_a_set_swaps_as_one(managed: Managed) -> None:
    groups = {"set": {"members": ["a", "any"], "swap": False, "exclusive": True}}
    appliance = await managed("a", "b", "any", any=engine(), groups=groups)
    await appliance.chat("a")
    await appliance.chat("any")
    assert appliance.statuses() == {"a": "ready", "b": "off", "any": "ready"}
    await appliance.chat("b")
    assert appliance.statuses() == {"a": "off", "b": "ready", "any": "off"}
    await appliance.chat("any")
    assert appliance.statuses() == {"a": "off", "b": "off", "any": "ready"}


async def test_a_pinned_model_of_the_group_is_named(managed: Managed) -> None:
    groups = {"set": {"members": ["a", "any"]}}
    appliance = await managed("a", "any", any=engine(), groups=groups)
    await appliance.chat("any")
    appliance.manager.pin("any")
    status, _, value = await appliance.ask("a")
    assert (status, value["error"]["code"]) == (503, "group_pinned")
    assert (
        "the pinned any may not be loaded beside it (`groups` of the model table)"
        in value["error"]["message"]
    )
    appliance.manager.pin("any", pinned=False)
    assert await appliance.chat("a") == REPLY


# ---- addresses of its own


def form(*fields: tuple[str, bytes | str]) -> aiohttp.FormData:
    made = aiohttp.FormData(quote_fields=False)
    for name, value in fields:
        made.add_field(name, value, filename="a.wav" if isinstance(value, bytes) else None)
    return made


async def test_audio_and_images_go_to_the_engine_that_is_named(managed: Managed) -> None:
    """It knows the model by another name."""
    how = engine("--name", "org/any", served_model="org/any")
    appliance = await managed("a", "any", any=how, max_concurrent_models=1)
    base_url, session = appliance.running.base_url, appliance.session
    small, large = b"RIFF" * 100, b"RIFF" * 500_000  # the large one is streamed
    for fields in (
        [("model", "any"), ("file", small)],
        [("file", small), ("model", "any")],
        [("model", "any"), ("file", large)],
    ):
        await appliance.chat("a")
        async with session.post(base_url + "/v1/audio/transcriptions", data=form(*fields)) as response:
            value = await response.json()
        assert (response.status, value["model"]) == (200, "org/any"), value
        assert int(value["text"].split()[0]) > len(dict(fields)["file"])  # type: ignore[call-overload]
    for path in ("/v1/images/generations", "/sdapi/v1/txt2img"):
        async with session.post(base_url + path, json={"model": "any", "prompt": "größe"}) as response:
            assert (response.status, (await response.json())["model"]) == (200, "org/any")
    async with session.post(base_url + "/inference?model=any", data=form(("file", large))) as response:
        assert (response.status, (await response.json())["model"]) == (200, "")
    assert await appliance.is_free()


async def test_a_large_form_that_names_no_model_at_its_beginning_is_refused(managed: Managed) -> None:
    appliance = await managed("a", "any", any=engine())
    fields = form(("file", b"RIFF" * 500_000), ("model", "any"))
    url = appliance.running.base_url + "/v1/audio/transcriptions"
    async with appliance.session.post(url, data=fields) as response:
        assert response.status == 400
        error = (await response.json())["error"]
    assert error["code"] == "missing_required_parameter"
    assert "does not name its model in its first 1 MiB. Put the field `model` before" in error["message"]
    assert appliance.statuses() == {"a": "off", "any": "off"}


async def test_a_llama_server_of_its_own_command_keeps_the_facts_of_its_file(
    managed: Managed, llama_binary: str, tiny_models: Path
) -> None:
    words = [llama_binary, "-m", "${MODEL_PATH}", "--port", "${PORT}", "-t", "1", "--metrics", "--jinja"]
    how = {"command": words, "model_path": str(tiny_models / "tiny-chat.gguf"), "engine_kind": "llamacpp"}
    appliance = await managed("own", own=how)
    assert await appliance.chat("own") == REPLY
    base_url, session = appliance.running.base_url, appliance.session
    async with session.get(base_url + "/v1/models/own") as response:
        assert (await response.json())["meta"]["n_params"] > 0
    async with session.post(base_url + "/api/show", json={"model": "own"}) as response:
        shown = await response.json()
    assert shown["model_info"]["general.architecture"] == "llama"
    assert "FROM tiny-chat.gguf" in shown["modelfile"]
    async with session.get(base_url + "/metrics") as response:
        assert 'model_name="own"' in await response.text()
