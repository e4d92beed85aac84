"""The status port as a process of its own, from the status file, as RouterModelCustom's guide starts it."""

import asyncio
import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from appliance.base.clock import FakeClock
from appliance.front.status_file_feeds import StatusFileFeeds
from tests.journeys.running import free_port

ROOT = Path(__file__).parents[1]
SERVER = {
    "status": "ready",
    "started_at": "2027-01-15T08:00:00.000000Z",
    "updated_at": "2027-01-15T08:00:00.000000Z",
}
LOADING, READY = {"alias": "a", "status": "loading"}, {"alias": "a", "status": "ready"}
MODULES = ("app.core.status_server", "appliance.status_server")
Begin = Callable[..., str]


def write(folder: Path, value: Any) -> None:
    """Replace the file as the appliance does."""
    (folder / "new").write_text(value if isinstance(value, str) else json.dumps(value))
    os.replace(folder / "new", folder / "model_status.json")


@pytest.fixture
def begin(tmp_path: Path) -> Iterator[Begin]:
    """Start it by the guide's command, on a free port; gives its address."""
    started: list[subprocess.Popen[str]] = []

    def start(module: str = MODULES[0]) -> str:
        command = [sys.executable, "-m", module, "--port", str(port := free_port())]
        environ = {"PATH": os.environ["PATH"], "STATE_DIR": str(tmp_path)}
        started.append(subprocess.Popen(command, cwd=ROOT, env=environ, stdout=subprocess.PIPE, text=True))
        assert started[-1].stdout is not None
        assert f"http://127.0.0.1:{port}/status" in started[-1].stdout.readline()
        return f"http://127.0.0.1:{port}"

    yield start
    for process in started:
        process.terminate()
        assert process.wait(10) == 0


def get(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=10) as response:
        return json.load(response)


@pytest.mark.parametrize("module", MODULES)
def test_it_shows_what_the_file_holds(begin: Begin, tmp_path: Path, module: str) -> None:
    url = begin(module)
    early = get(f"{url}/health")
    assert (early["status"], early["server"]["status"]) == ("ok", "initializing")
    assert get(f"{url}/status")["models"] == {}
    write(tmp_path, {"server": SERVER, "models": {"a": READY}})
    assert get(f"{url}/health") == {"status": "ok", "server": SERVER}
    summary = {"total": 1, "by_status": {"ready": 1}}
    assert get(f"{url}/status") == {"server": SERVER, "models": {"a": READY}, "summary": summary}
    assert get(f"{url}/status/a") == READY
    with pytest.raises(urllib.error.HTTPError) as caught:
        get(f"{url}/status/nobody")
    assert caught.value.code == 404


def test_its_stream_follows_the_file(begin: Begin, tmp_path: Path) -> None:
    write(tmp_path, {"server": SERVER, "models": {"a": LOADING}})
    with urllib.request.urlopen(f"{begin()}/status/stream", timeout=10) as response:
        events = (line.decode().strip() for line in response)
        assert next(events) == "event: full_status"
        next(events), next(events)
        write(tmp_path, {"server": SERVER, "models": {"a": READY}})
        assert next(events) == "event: model_update"
        assert json.loads(next(events).removeprefix("data: ")) == READY


@pytest.mark.parametrize(
    "value",
    [
        "",
        "{",
        "[]",
        {},
        {"server": SERVER},
        {"server": [], "models": {}},
        {"server": SERVER, "models": {"a": 1}},
    ],
)
async def test_a_damaged_file_counts_as_none(tmp_path: Path, value: Any) -> None:
    write(tmp_path, value)
    feeds = StatusFileFeeds(tmp_path / "model_status.json", clock=FakeClock(0))
    assert feeds.now()["server"]["status"] == "initializing"


async def test_a_silent_file_sends_heartbeats_and_the_end_is_told(tmp_path: Path) -> None:
    write(tmp_path, {"server": SERVER, "models": {}})
    feeds = StatusFileFeeds(tmp_path / "model_status.json", clock=FakeClock(0), silence_s=0.01)
    stream = feeds.status()
    kinds = [(await anext(stream)).split(b"\n")[0] for _ in range(2)]
    assert kinds == [b"event: full_status", b"event: heartbeat"]
    feeds.close()
    rest = b"".join([piece async for piece in stream])
    assert b"shutting_down" in rest
    await asyncio.sleep(0)


@pytest.mark.parametrize(
    ("words", "said"), [(["--port", "70000"], "0 to 65535"), (["--colour"], "unrecognized")]
)
def test_a_wrong_command_line_is_refused(words: list[str], said: str) -> None:
    command = [sys.executable, "-m", MODULES[1], *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, said in done.stderr) == (2, True)


def test_a_port_that_is_taken_is_named(begin: Begin) -> None:
    port = begin().rpartition(":")[2]
    command = [sys.executable, "-m", MODULES[1], "--port", port]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 1
    assert port in done.stderr
    assert "--port" in done.stderr
