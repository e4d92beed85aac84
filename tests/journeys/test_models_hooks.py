"""Hooks of models: what runs before a load and after an unload, and what happens when it fails or hangs."""

import asyncio
import json
import os
import signal
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from appliance.models.runner import hooks as hooks_module
from tests.journeys.model_tables import Managed, Stopwatch, runs
from tests.journeys.running import Spawn, until
from tests.journeys.test_models_engines import engine
from tests.tools.tiny_engine import REPLY as ENGINE_REPLY
from tests.tools.tiny_models import REPLY

pytestmark = pytest.mark.timeout(60)


def note(path: Path, text: str) -> list[str]:
    """Give a command that adds a line to a file."""
    return ["sh", "-c", 'echo "$0 $MODEL" >>"$1"', text, str(path)]


def lines(path: Path) -> list[str]:
    return path.read_text().split("\n")[:-1] if path.exists() else []


async def test_hooks_run_around_each_server(managed: Managed, tmp_path: Path) -> None:
    log = tmp_path / "log"
    hooks = {"before_load": note(log, "before"), "after_unload": note(log, "after")}
    appliance = await managed("a", "any", a=hooks, any=engine(**hooks), max_concurrent_models=1)
    assert await appliance.chat("a") == REPLY
    assert lines(log) == ["before a"]
    assert await appliance.chat("any") == ENGINE_REPLY
    assert lines(log) == ["before a", "after a", "before any"]
    await appliance.manager.eject("any")
    assert lines(log)[3:] == ["after any"]


async def test_a_crash_is_followed_by_the_hook_and_another_load(managed: Managed, tmp_path: Path) -> None:
    log = tmp_path / "log"
    appliance = await managed("a", a={"before_load": note(log, "before"), "after_unload": note(log, "after")})
    await appliance.chat("a")
    os.kill(appliance.pid("a"), signal.SIGKILL)
    assert await until(lambda: len(lines(log)) == 3)
    assert lines(log) == ["before a", "after a", "before a"]
    assert await appliance.chat("a") == REPLY


async def test_a_failed_before_load_fails_the_load_with_its_output(managed: Managed, tmp_path: Path) -> None:
    log = tmp_path / "log"
    failing = ["sh", "-c", "echo begins; echo 'the disk is not mounted' >&2; exit 4"]
    how = engine(before_load=failing, after_unload=note(log, "after"))
    appliance = await managed("a", "any", any=how, model_load_max_retries=0)
    status, _, value = await appliance.ask("any")
    assert (status, value["error"]["code"]) == (503, "model_failed")
    assert "before_load (sh) exited with code 4: begins; the disk is not mounted" in value["error"]["message"]
    assert (appliance.status("any"), lines(log)) == ("failed", [])
    assert await appliance.chat("a") == REPLY


async def test_a_before_load_that_hangs_is_ended_at_its_limit(managed: Managed, tmp_path: Path) -> None:
    hanging = ["sh", "-c", f"trap '' TERM; echo waits; sleep 50 & echo $! >{tmp_path}/pid; wait; sleep 50"]
    how = engine(before_load=hanging, hook_timeout_sec=1)
    appliance = await managed("any", any=how, model_load_max_retries=0)
    watch = Stopwatch()
    status, _, value = await appliance.ask("any")
    assert (status, 1 <= watch.s < 8) == (503, True)
    assert "before_load (sh) did not end within 1 s (hook_timeout_sec): waits" in value["error"]["message"]
    pid = int((tmp_path / "pid").read_text())
    assert await until(lambda: not runs(pid))


@pytest.mark.parametrize(("then", "is_left"), [("exit 4", False), ("sleep 50", False), ("exit 0", True)])
async def test_what_a_hook_started_elsewhere_ends_unless_it_succeeds(
    managed: Managed, tmp_path: Path, then: str, is_left: bool
) -> None:
    """A program that mounts a disk goes on in a session of its own."""
    line = f"setsid sh -c 'echo $$ >{tmp_path}/pid; exec sleep 500' & sleep 0.3; {then}"
    how = engine(before_load=["sh", "-c", line], hook_timeout_sec=1)
    appliance = await managed("any", any=how, model_load_max_retries=0)
    status, _, _ = await appliance.ask("any")
    pid = int((tmp_path / "pid").read_text())
    assert (status, runs(pid)) == (200 if is_left else 503, is_left)
    if is_left:
        os.kill(pid, signal.SIGKILL)


async def test_an_eject_ends_a_before_load(managed: Managed, tmp_path: Path) -> None:
    log = tmp_path / "log"
    how = engine(before_load=["sleep", "50"], after_unload=note(log, "after"))
    appliance = await managed("any", any=how)
    asked = asyncio.create_task(appliance.ask("any"))
    assert await until(
        lambda: any(one.before_load and one.before_load.pid for one in appliance.runners("any"))
    )
    assert appliance.status("any") == "starting"
    watch = Stopwatch()
    asked.cancel()
    await appliance.manager.eject("any")
    assert watch.s < 3
    assert (appliance.status("any"), lines(log)) == ("off", [])


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        (["sh", "-c", "echo no luck; exit 3"], "after_unload (sh) exited with code 3: no luck"),
        (["sleep", "50"], "after_unload (sleep) did not end within 1 s (hook_timeout_sec)"),
        (["/nowhere/tidy"], "after_unload (tidy) exited with code 127"),
    ],
)
async def test_a_failed_after_unload_is_logged(
    managed: Managed, monkeypatch: pytest.MonkeyPatch, command: list[str], reason: str
) -> None:
    said: list[str] = []
    monkeypatch.setattr(hooks_module.log, "warning", lambda event, **more: said.append(more["reason"]))
    how = engine(after_unload=command, hook_timeout_sec=1)
    appliance = await managed("a", "any", any=how, max_concurrent_models=1)
    assert await appliance.chat("any") == ENGINE_REPLY
    assert await appliance.chat("a") == REPLY
    assert appliance.statuses() == {"a": "ready", "any": "off"}
    assert len(said) == 1
    assert said[0].startswith(reason)
    assert await appliance.chat("any") == ENGINE_REPLY


async def test_a_failed_load_is_followed_by_its_hook_once(managed: Managed, tmp_path: Path) -> None:
    log = tmp_path / "log"
    how = engine("--exit-at-once", before_load=note(log, "before"), after_unload=note(log, "after"))
    appliance = await managed("any", any=how, model_load_max_retries=0)
    assert (await appliance.ask("any"))[0] == 503
    assert [line.split()[0] for line in lines(log)] == ["before", "after"]


async def test_a_reload_takes_hooks_without_an_unload(managed: Managed, tmp_path: Path) -> None:
    log = tmp_path / "log"
    appliance = await managed("a")
    await appliance.chat("a")
    pid = appliance.pid("a")
    await appliance.change(a={"before_load": note(log, "before")})
    await appliance.chat("a")
    assert (appliance.pid("a"), lines(log)) == (pid, [])
    await appliance.manager.eject("a")
    await appliance.chat("a")
    assert lines(log) == ["before a"]


async def test_a_stop_of_the_appliance_runs_after_unload(managed: Managed, tmp_path: Path) -> None:
    log = tmp_path / "log"
    appliance = await managed("any", any=engine(after_unload=note(log, "after")))
    await appliance.chat("any")
    await appliance.manager.close()
    assert lines(log) == ["after any"]


def test_next_start_ends_a_hook_that_was_left(spawn: Spawn, tmp_path: Path) -> None:
    """The kernel ends the shell with the appliance, and not what it has started."""
    line = f"sleep 50 & echo $! >'{tmp_path}/pid'; wait"
    config = tmp_path / "engine.json"
    config.write_text(json.dumps({"models": {"any": engine(before_load=["sh", "-c", line])}}))
    running = spawn(CONFIG_PATH=str(config))
    request = urllib.request.Request(
        running.base_url + "/v1/chat/completions",
        json.dumps({"model": "any", "messages": [{"role": "user", "content": "x"}]}).encode(),
    )
    try:
        urllib.request.urlopen(request, timeout=1)
    except (TimeoutError, urllib.error.URLError):
        pass
    pid = int((tmp_path / "pid").read_text())
    assert runs(pid)
    running.process.kill()
    running.process.wait()
    assert runs(pid)
    spawn(CONFIG_PATH=str(config))
    ends_s = time.monotonic() + 10
    while runs(pid) and time.monotonic() < ends_s:
        time.sleep(0.02)
    assert not runs(pid)
