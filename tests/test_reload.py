"""A reload: refusals, the list of changes, the roll-back."""

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from appliance.base.settings import Problem
from appliance.control.parts import ReloadResult
from appliance.lifecycle import Lifecycle
from appliance.models.table.catalogue import Catalogue, Model
from appliance.models.table.entries import Params
from appliance.parts import Appliance
from appliance.reload import Reloader, reload_on_request
from appliance.settings import Settings, load, load_or_raise


@pytest.fixture
async def appliance(tmp_path: Path) -> AsyncIterator[Appliance]:
    """The parts of an appliance that does not listen."""
    environ = {"STATE_DIR": str(tmp_path), "NAT_REDIRECT": "off", "PATH": "/usr/bin:/bin"}
    settings, _ = load_or_raise(environ)
    made = Appliance(settings, [])
    async with made.tasks:
        yield made
        await made.fleet.close()


def changed(result: ReloadResult) -> list[tuple[str, str, str, bool]]:
    return [(one.variable, one.old, one.new, one.needs_restart) for one in result.changes]


@pytest.mark.parametrize(
    ("overrides", "variable", "text"),
    [
        ({"NO_SUCH_NAME": "1"}, "NO_SUCH_NAME", "There is no such variable. See `appliance settings`."),
        ({"HEARTBEAT_S": "soon"}, "HEARTBEAT_S", "allowed: a number from 0 to 600"),
    ],
)
async def test_settings_with_problems_change_nothing(
    appliance: Appliance, overrides: dict[str, str], variable: str, text: str
) -> None:
    result = await Reloader(appliance).reload(overrides, dry_run=False)
    assert (result.applied, result.changes) == (False, ())
    assert result.message == "Nothing was changed: the new settings have problems."
    (problem,) = [one for one in result.problems if one.variable == variable]
    assert text in str(problem)


async def test_a_dry_run_says_what_would_change(appliance: Appliance) -> None:
    result = await Reloader(appliance).reload({"HEARTBEAT_S": "3", "PROXY_PORT": "15000"}, dry_run=True)
    assert changed(result) == [("PROXY_PORT", "14000", "15000", True), ("HEARTBEAT_S", "10.0", "3.0", False)]
    assert (result.applied, result.message) == (False, "Nothing was changed: a dry run.")
    assert appliance.settings.front.heartbeat_s == 10


async def test_without_a_difference_nothing_is_done(appliance: Appliance) -> None:
    result = await Reloader(appliance).reload({}, dry_run=False)
    assert (result.applied, result.changes, result.message) == (False, (), "Nothing differs.")


async def test_settings_that_need_a_restart_are_not_applied(appliance: Appliance) -> None:
    seen = appliance.lifecycle.changed.value
    result = await Reloader(appliance).reload({"HEARTBEAT_S": "3", "PROXY_PORT": "15000"}, dry_run=False)
    assert (result.applied, result.message) == (True, "Applied, except for PROXY_PORT: these need a restart.")
    assert (appliance.settings.front.heartbeat_s, appliance.settings.front.proxy_port) == (3, 14000)
    assert appliance.pipeline.heartbeat_s() == 3
    assert appliance.lifecycle.changed.value == seen + 1


async def test_overrides_of_earlier_reloads_stay(appliance: Appliance) -> None:
    reloader = Reloader(appliance)
    assert (await reloader.reload({"HEARTBEAT_S": "3"}, dry_run=False)).message == "Applied."
    await reloader.reload({"LOG_LEVEL": "debug"}, dry_run=False)
    assert appliance.settings.front.heartbeat_s == 3
    await reloader.reload({"HEARTBEAT_S": ""}, dry_run=False)
    assert appliance.settings.front.heartbeat_s == 10


async def test_secrets_and_proxies_are_not_shown(appliance: Appliance) -> None:
    overrides = {"APPLIANCE_API_KEYS": "secret-key-1", "OPERATOR_API_KEYS": "secret-key-2"}
    reloader = Reloader(appliance)
    await reloader.reload(overrides, dry_run=False)
    result = await reloader.reload(overrides | {"APPLIANCE_API_KEYS": "secret-key-3"}, dry_run=False)
    assert changed(result) == [("APPLIANCE_API_KEYS", "(hidden)", "(hidden)", False)]
    assert "secret-key" not in str(result)


async def test_a_failed_reload_is_rolled_back(appliance: Appliance, monkeypatch: pytest.MonkeyPatch) -> None:
    applied: list[float] = []
    apply = appliance.fleet.apply

    def failing(engines: Any, *rest: Any) -> None:
        applied.append(engines.queue_ageing_s)
        if engines.queue_ageing_s == 7:
            raise RuntimeError("no room")
        apply(engines, *rest)

    monkeypatch.setattr(appliance.fleet, "apply", failing)
    former = appliance.settings
    overrides = {"QUEUE_AGEING_S": "7", "HEARTBEAT_S": "3"}
    result = await Reloader(appliance).reload(overrides, dry_run=False)
    assert (result.applied, len(result.changes)) == (False, 2)
    assert result.message == "Nothing was changed: putting the new settings in place failed."
    assert result.problems[0].remedy == "no room. The former settings are in place again."
    assert applied == [7, former.engines.queue_ageing_s]
    assert appliance.settings is former
    assert appliance.pipeline.heartbeat_s() == 10


async def test_models_that_come_during_a_reload_stay(appliance: Appliance) -> None:
    """The reload read the files before a model came, and is applied after it."""
    model = Model("new", Path("/new.gguf"), Params(), "folder")
    begun, go_on = threading.Semaphore(0), threading.Semaphore(0)
    reads: list[Catalogue] = []

    def read(environ: dict[str, str]) -> tuple[Settings | None, list[Problem]]:
        catalogue = appliance.settings.catalogue  # as the folder is now
        begun.release()
        go_on.acquire(timeout=10)
        reads.append(catalogue)
        settings, problems = load(environ)
        return settings and replace(settings, catalogue=catalogue), problems

    reload = asyncio.create_task(Reloader(appliance, read=read).reload({"HEARTBEAT_S": "3"}, dry_run=False))
    await asyncio.to_thread(begun.acquire)
    appliance.settings = replace(appliance.settings, catalogue=Catalogue({"new": model}))
    go_on.release(2)
    result = await reload
    assert [list(one.models) for one in reads] == [[], ["new"]]
    assert changed(result) == [("HEARTBEAT_S", "10.0", "3.0", False)]
    assert list(appliance.settings.catalogue.models) == ["new"]


# ---- reloads that a signal asks for


class SlowReloader:
    """Counts reloads; each ends when the test lets it."""

    def __init__(self, *failures: Exception) -> None:
        self.begun = asyncio.Semaphore(0)
        self.go_on = asyncio.Semaphore(0)
        self.failures = list(failures)

    async def reload(self, overrides: dict[str, str], dry_run: bool) -> ReloadResult:
        assert (overrides, dry_run) == ({}, False)
        self.begun.release()
        await self.go_on.acquire()
        if self.failures:
            raise self.failures.pop()
        return ReloadResult((), (Problem("X", "", "y", "z"),), False, "Nothing was changed.")


async def test_requests_during_a_reload_lead_to_one_more() -> None:
    lifecycle, reloader = Lifecycle([]), SlowReloader()
    task = asyncio.create_task(reload_on_request(lifecycle, reloader, nullcontext))  # type: ignore[arg-type]
    lifecycle.reload_requested.set()
    await reloader.begun.acquire()
    lifecycle.reload_requested.set()
    lifecycle.reload_requested.set()
    reloader.go_on.release()
    await reloader.begun.acquire()
    reloader.go_on.release()
    for _ in range(5):
        await asyncio.sleep(0)
    assert reloader.begun.locked()
    assert not lifecycle.reload_requested.is_set()
    task.cancel()


async def test_a_reload_that_fails_does_not_end_the_next_one() -> None:
    lifecycle, reloader = Lifecycle([]), SlowReloader(RuntimeError("no"))
    task = asyncio.create_task(reload_on_request(lifecycle, reloader, nullcontext))  # type: ignore[arg-type]
    for _ in range(2):
        lifecycle.reload_requested.set()
        await reloader.begun.acquire()
        reloader.go_on.release()
    await asyncio.sleep(0)
    assert not task.done()
    task.cancel()
