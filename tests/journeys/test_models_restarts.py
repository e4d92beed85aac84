"""The appliance itself ends, or is ended, with models loaded.

Nothing is left behind, and nothing that is not ours is touched.
"""

import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.journeys.llama_servers import DIES_WITH_US, HELLO, long_body
from tests.journeys.model_tables import port_range, runs, servers_of, table_of, wrapper
from tests.journeys.running import Process, Spawn
from tests.tools.tiny_engine import REPLY as ENGINE_REPLY
from tests.tools.tiny_models import REPLY

ENGINE = Path(__file__).parents[1] / "tools" / "tiny_engine.py"


def until(condition: Callable[[], bool], *, seconds: float = 10.0) -> bool:
    ends_s = time.monotonic() + seconds
    while time.monotonic() < ends_s:
        if condition():
            return True
        time.sleep(0.02)
    return condition()


def asked(running: Process, alias: str, **more: Any) -> Any:
    body = json.dumps({"model": alias, "messages": HELLO} | more).encode()
    return urllib.request.urlopen(
        urllib.request.Request(running.base_url + "/v1/chat/completions", body), timeout=30
    )


def said(running: Process, alias: str) -> str:
    with asked(running, alias) as answer:
        return str(json.load(answer)["choices"][0]["message"]["content"])


@pytest.fixture
def models(tmp_path: Path, tiny_models: Path) -> Path:
    """A folder of this test's own: whose command line names it, was started by this test."""
    folder = tmp_path / "models"
    folder.mkdir()
    for name in ("tiny-chat.gguf", "tiny-embed.gguf"):
        shutil.copyfile(tiny_models / name, folder / name)
    return folder


@pytest.fixture
def start_appliance(
    spawn: Spawn, models: Path, llama_binary: str, tmp_path: Path
) -> Iterator[Callable[..., Process]]:
    """Start the appliance in a process of its own with models a and b, each time on the same state."""
    config, ports = tmp_path / "config.json", port_range()
    config.write_text(json.dumps(table_of(models, "ab")))

    def begin(**variables: Any) -> Process:
        return spawn(**{"CONFIG_PATH": str(config), "LLAMA_SERVER_PATH": llama_binary, **ports, **variables})

    yield begin
    for pid in servers_of(models):  # none, unless the test failed
        os.kill(pid, signal.SIGKILL)


def test_sigterm_lets_streams_end_and_leaves_no_server(start_appliance, models: Path) -> None:
    running = start_appliance(SHUTDOWN_GRACE_S="20")
    assert [said(running, "a"), said(running, "b")] == [REPLY] * 2
    assert len(servers_of(models)) == 2
    with asked(running, "a", **long_body(1500, model="a")) as answer:
        answer.readline()
        running.process.send_signal(signal.SIGTERM)
        text = answer.read()
    assert text.endswith(b"data: [DONE]\n\n")
    assert b'"error"' not in text
    assert running.process.wait(20) == 0
    assert servers_of(models) == {}
    assert list((running.log.parent / "state" / "runners").iterdir()) == []


def test_when_the_grace_is_over_everything_ends_all_the_same(start_appliance, models: Path) -> None:
    running = start_appliance(SHUTDOWN_GRACE_S="0.3")
    with asked(running, "a", **long_body(3500, model="a")) as answer:
        answer.readline()
        running.process.send_signal(signal.SIGTERM)
        try:
            text = answer.read()
        except (OSError, http.client.HTTPException):
            text = b""
        assert not text.endswith(b"data: [DONE]\n\n")
    assert running.process.wait(20) == 0
    assert servers_of(models) == {}


def test_killed_with_minus_9_it_takes_its_servers_along(start_appliance, models: Path) -> None:
    """The kernel tells them (setpriv); the next start serves."""
    running = start_appliance()
    assert said(running, "a") == REPLY
    running.process.kill()
    running.process.wait()
    assert until(lambda: not servers_of(models))
    again = start_appliance()
    assert said(again, "a") == REPLY
    assert len(servers_of(models)) == 1


def test_next_start_ends_what_a_command_started(start_appliance, tmp_path: Path) -> None:
    """The kernel ends the shell with the appliance, and not the engine that it started with other words."""
    line = f"'{sys.executable}' '{ENGINE}' & echo $! >'{tmp_path}/pid'; wait"
    config = tmp_path / "engine.json"
    config.write_text(json.dumps({"models": {"any": {"command": ["sh", "-c", line]}}}))
    running = start_appliance(CONFIG_PATH=str(config))
    assert said(running, "any") == ENGINE_REPLY
    pid = int((tmp_path / "pid").read_text())
    running.process.kill()
    running.process.wait()
    (record,) = (tmp_path / "state" / "runners").glob("*.json")
    assert until(lambda: not runs(int(record.stem)))
    assert runs(pid)
    again = start_appliance(CONFIG_PATH=str(config))
    assert until(lambda: not runs(pid))
    assert not record.exists()
    assert said(again, "any") == ENGINE_REPLY


@pytest.mark.parametrize("is_child", [False, True], ids=["plain", "behind a wrapper"])
def test_next_start_ends_orphans_and_only_them(
    start_appliance,
    models: Path,
    llama_binary: str,
    tmp_path: Path,
    is_child: bool,
) -> None:
    """Without setpriv they survive.

    Another's llama-server runs the same model, and a stale record names it.
    """
    (tmp_path / "nothing").mkdir()
    binary = str(wrapper(tmp_path, llama_binary, ending='"$real" "$@"; exit')) if is_child else llama_binary
    poor = {"PATH": str(tmp_path / "nothing"), "LLAMA_SERVER_PATH": binary}
    running = start_appliance(**poor)
    assert [said(running, "a"), said(running, "b")] == [REPLY] * 2
    ours = servers_of(models)
    assert len(set(ours.values())) == 2
    foreign = subprocess.Popen(
        [
            *DIES_WITH_US,
            llama_binary,
            "--model",
            str(models / "tiny-chat.gguf"),
            "--alias",
            "a",
            "--port",
            "0",
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        running.process.kill()
        running.process.wait()
        if is_child:  # the wrappers may go too: what they started is found all the same
            for path in (tmp_path / "state" / "runners").glob("*.json"):
                os.kill(int(path.stem), signal.SIGKILL)
        assert until(lambda: len(set(servers_of(models).values()) - {0}) == 2)
        record = json.loads(next((tmp_path / "state" / "runners").glob("*.json")).read_text())
        (tmp_path / "state" / "runners" / f"{foreign.pid}.json").write_text(
            json.dumps(record | {"pid": foreign.pid})
        )
        again = start_appliance(**poor)
        assert until(lambda: not any(runs(pid) for pid in ours))
        assert foreign.poll() is None
        assert '"event":"orphans_ended"' in again.text()
        assert said(again, "a") == REPLY
        assert foreign.poll() is None
        again.process.terminate()
        assert again.process.wait(20) == 0
        assert set(servers_of(models)) == {foreign.pid}
        assert list((tmp_path / "state" / "runners").iterdir()) == []
    finally:
        foreign.kill()
        foreign.wait()


def test_second_appliance_leaves_servers_of_the_first_alone(
    start_appliance, models: Path, tmp_path: Path
) -> None:
    first = start_appliance()
    assert said(first, "a") == REPLY
    mine = set(servers_of(models))
    second = start_appliance(wait=False)
    assert second.process.wait(20) == 1
    assert f"in use by another appliance, process {first.process.pid}" in second.text()
    assert mine == set(servers_of(models))
    assert said(first, "a") == REPLY
    assert said(start_appliance(STATE_DIR=str(tmp_path / "other")), "a") == REPLY
    assert mine < set(servers_of(models))
    assert said(first, "a") == REPLY


def test_a_sigterm_while_a_model_loads_and_requests_wait(
    start_appliance, models: Path, llama_binary: str, tmp_path: Path
) -> None:
    slow = wrapper(tmp_path, llama_binary, f"touch {tmp_path}/begun", "exec sleep 60")
    running = start_appliance(LLAMA_SERVER_PATH=str(slow), SHUTDOWN_GRACE_S="0.3")
    found: list[Any] = []

    def ask() -> None:
        try:
            found.append(said(running, "a"))
        except urllib.error.HTTPError as error:
            found.append(error.code)
        except OSError as error:
            found.append(error)

    asking = threading.Thread(target=ask)
    asking.start()
    assert until(lambda: (tmp_path / "begun").exists())
    pids = [int(path.stem) for path in (tmp_path / "state" / "runners").glob("*.json")]
    running.process.send_signal(signal.SIGTERM)
    assert running.process.wait(20) == 0
    asking.join()
    assert found != [REPLY]
    assert pids
    assert not any(runs(pid) for pid in pids)
