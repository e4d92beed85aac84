"""The configuration file while it changes: when it is read, and what becomes of a wrong one."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from appliance.app import running
from appliance.base.clock import SystemClock
from appliance.base.config_file import Signature
from appliance.base.file_events import FileEvents
from appliance.config_watch import WatchedFile, next_look, watch_config
from appliance.parts import Appliance
from appliance.settings import load_or_raise
from tests.journeys.running import free_port, until

A, B, C = (1, 1, 1, 1), (1, 2, 1, 1), (1, 2, 1, 2)


@pytest.mark.parametrize(
    ("looks", "reads"),
    [
        pytest.param([A, A, A], [], id="unchanged"),
        pytest.param([B, B, B], [B], id="replaced"),
        pytest.param([B, C, C], [C], id="still-being-written"),
        pytest.param([None, None, B, B], [B], id="renamed-in-two-steps"),
        pytest.param([None, A, A], [], id="gone-and-back"),
        pytest.param([B, A, A], [], id="changed-and-undone"),
        pytest.param([B, B, A, A], [B, A], id="twice"),
        pytest.param([B, None, B, B], [B], id="vanished-while-written"),
    ],
)
def test_file_is_read_once_it_has_stayed_the_same(
    looks: list[Signature | None], reads: list[Signature]
) -> None:
    file, found = WatchedFile(A), []
    for now in looks:
        file, is_due = next_look(file, now)
        if is_due:
            found.append(now)
    assert found == reads


@pytest.mark.parametrize(
    ("looks", "reads"),
    [
        pytest.param([(0.0, B, False), (0.5, B, False), (0.9, B, False)], [0.9], id="unchanged-for-a-second"),
        pytest.param([(0.0, B, True), (0.5, B, False)], [0.0], id="known-to-be-whole"),
        pytest.param([(0.0, B, False), (0.5, C, False), (1.0, C, False), (1.5, C, False)], [1.5], id="grows"),
        pytest.param([(0.0, A, True)], [], id="whole-but-as-it-was"),
    ],
)
def test_file_is_read_once_it_is_whole(
    looks: list[tuple[float, Signature | None, bool]], reads: list[float]
) -> None:
    file, found = WatchedFile(A), []
    for now_s, now, is_whole in looks:
        finished = {now[1:]} if now and is_whole else set()
        file, is_due = next_look(file, now, finished=finished, now_s=now_s, steady_s=0.9)
        if is_due:
            found.append(now_s)
    assert found == reads


async def test_watch_sees_a_file_that_appears(tmp_path: Path) -> None:
    path, asked = tmp_path / "a.yaml", asyncio.Event()
    watching = asyncio.get_running_loop().create_task(
        watch_config(lambda: [path], {path: None}, asked.set, clock=SystemClock(), every_s=0.01)
    )
    await asyncio.sleep(0)
    path.write_text("settings: {}")
    await asyncio.wait_for(asked.wait(), 5)
    watching.cancel()


@pytest.fixture
async def start(tmp_path: Path) -> AsyncIterator[Callable]:
    """Start an appliance that watches its files."""
    opened = []

    async def begin(path: Path, env_file: Path | None = None) -> Appliance:
        settings, problems = load_or_raise(
            {
                "CONFIG_PATH": str(path),
                "CONFIG_WATCH": "1",
                "APPLIANCE_ENV_FILE": str(env_file or ""),
                "PROXY_PORT": str(free_port()),
                "CONTROL": "0",
                "STATE_DIR": str(tmp_path / "state"),
                "MACHINE_ID_PATH": str(tmp_path / "machine-id"),
                "NAT_REDIRECT": "off",
                "PATH": "/usr/bin:/bin",
            }
        )
        context = running(settings, warnings=[str(problem) for problem in problems])
        opened.append(context)
        return await context.__aenter__()

    yield begin
    for context in opened:
        await context.__aexit__(None, None, None)


def heartbeat(appliance: Appliance) -> float:
    return appliance.settings.front.heartbeat_s


def text_of(heartbeat_s: object) -> str:
    return f"settings:\n  HEARTBEAT_S: {heartbeat_s}\n"


async def test_rename_over_the_file_is_taken_and_a_wrong_one_is_not(start: Callable, tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text_of(3))
    appliance = await start(path)
    assert heartbeat(appliance) == 3

    def put(text: str) -> None:
        other = tmp_path / ".c.yaml.swp"
        other.write_text(text)
        other.replace(path)

    put(text_of(4))
    assert await until(lambda: heartbeat(appliance) == 4)
    put(text_of("soon"))
    assert await until(lambda: len(appliance.status()["warnings"]) == 1)
    (warning,) = appliance.status()["warnings"]
    assert "HEARTBEAT_S=soon: allowed: a number from 0 to 600" in warning
    assert "not taken" in warning
    assert heartbeat(appliance) == 4
    put(text_of(5))
    assert await until(lambda: heartbeat(appliance) == 5)
    assert appliance.status()["warnings"] == []


async def test_link_of_a_config_map_that_is_turned_is_taken(start: Callable, tmp_path: Path) -> None:
    """As Kubernetes does it: c.yaml → ..data/c.yaml, and ..data → a folder that is replaced."""
    for number in (1, 2):
        (tmp_path / f"..{number}").mkdir()
        (tmp_path / f"..{number}" / "c.yaml").write_text(text_of(number))
    (tmp_path / "..data").symlink_to("..1")
    (tmp_path / "c.yaml").symlink_to("..data/c.yaml")
    appliance = await start(tmp_path / "c.yaml")
    assert heartbeat(appliance) == 1
    (tmp_path / "..data_tmp").symlink_to("..2")
    (tmp_path / "..data_tmp").replace(tmp_path / "..data")
    assert await until(lambda: heartbeat(appliance) == 2)


async def test_file_that_vanishes_changes_nothing_until_it_is_back(start: Callable, tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text_of(3))
    appliance = await start(path)
    path.rename(tmp_path / "c.yaml~")
    await asyncio.sleep(0.1)
    assert heartbeat(appliance) == 3
    path.write_text(text_of(6))
    assert await until(lambda: heartbeat(appliance) == 6)
    assert appliance.status()["warnings"] == []


async def test_file_of_variables_is_watched_as_well(start: Callable, tmp_path: Path) -> None:
    path, env_file = tmp_path / "c.yaml", tmp_path / "env"
    path.write_text(text_of(3))
    env_file.write_text("CORS_ORIGINS=http://a.example\n")
    appliance = await start(path, env_file)
    env_file.write_text("CORS_ORIGINS=http://a.example\nHEARTBEAT_S=7\n")
    assert await until(lambda: heartbeat(appliance) == 7)


async def test_files_are_looked_at_where_the_kernel_tells_nothing(
    start: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FileEvents, "_file_system", lambda *_: 0x6969)
    monkeypatch.setattr(watch_config, "__kwdefaults__", {"every_s": 0.02})
    path = tmp_path / "c.yaml"
    path.write_text(text_of(3))
    appliance = await start(path)
    path.write_text(text_of(4))
    assert await until(lambda: heartbeat(appliance) == 4)
