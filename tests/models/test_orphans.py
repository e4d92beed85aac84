"""Processes left by an earlier appliance are found and stopped at the next start; no other process is.

Real processes, and records of them.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from appliance.models.runner.orphans import MARK, Records, survivors
from appliance.models.runner.proc import command_of, started_ticks

pytestmark = pytest.mark.timeout(40)
SLEEPER = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(60)", "--model", "x.gguf"]
DEAF = [
    sys.executable,
    "-c",
    "import signal, time; signal.signal(15, signal.SIG_IGN); print('up', flush=True); time.sleep(60)",
    "--port",
    "1",
]
Spawn = Callable[[list[str]], "subprocess.Popen[str]"]


@pytest.fixture
def spawn() -> Iterator[Spawn]:
    """Start a process in a session of its own, as runners are; wait until it says that it is up."""
    started = []

    def start(command: list[str]) -> "subprocess.Popen[str]":
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline().startswith("up")
        return process

    yield start
    for process in started:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        process.wait()


def written(folder: Path, process: "subprocess.Popen[str]", started: list[str], **other: Any) -> Path:
    """Write the record that an appliance which no longer runs has left; `other` replaces its fields."""
    records = Records(folder)
    records.add(process.pid, port=8085, alias="tiny", command=started)
    path = folder / f"{process.pid}.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"owner": 2_000_000, "owner_ticks": 5} | other))
    return path


def test_orphan_is_stopped_and_its_record_removed(tmp_path: Path, spawn: Spawn) -> None:
    process = spawn(SLEEPER)
    written(tmp_path, process, SLEEPER)
    found = Records(tmp_path).end_orphans()
    assert [(one["pid"], one["alias"], one["port"]) for one in found] == [(process.pid, "tiny", 8085)]
    assert process.wait(5) == -signal.SIGTERM
    assert list(tmp_path.iterdir()) == []
    assert Records(tmp_path).end_orphans() == []


def test_orphan_of_an_appliance_with_the_same_process_id_is_stopped(tmp_path: Path, spawn: Spawn) -> None:
    """In a container the appliance has the same process id after each restart."""
    process = spawn(SLEEPER)
    written(tmp_path, process, SLEEPER, owner=os.getpid(), owner_ticks=1)
    assert len(Records(tmp_path).end_orphans()) == 1


def test_orphan_that_ignores_sigterm_is_killed_with_its_children(
    tmp_path: Path, spawn: Spawn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("appliance.models.runner.orphans.TERM_S", 0.2)
    inner = DEAF[2].replace("print('up', flush=True); ", "")
    command = [
        sys.executable,
        "-c",
        f"import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', {inner!r}]); {DEAF[2].replace(chr(39) + 'up' + chr(39), chr(39) + 'up' + chr(39) + ', p.pid')}",
        "--port",
        "1",
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stdout is not None
    child = int(process.stdout.readline().split()[1])
    try:
        time.sleep(0.2)  # until the child ignores SIGTERM too
        written(tmp_path, process, command)
        assert len(Records(tmp_path).end_orphans()) == 1
        assert process.wait(5) == -signal.SIGKILL
        assert has_exited(child)
    finally:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        process.wait()


def test_rest_of_the_group_is_stopped_after_a_clean_exit(tmp_path: Path) -> None:
    inner = "import signal, time; signal.signal(15, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"
    command = [
        sys.executable,
        "-c",
        f"import subprocess, sys, time; p = subprocess.Popen([sys.executable, '-c', {inner!r}], stdout=subprocess.PIPE); "
        "p.stdout.readline(); print('up', p.pid, flush=True); time.sleep(60)",
        "--port",
        "1",
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stdout is not None
    child = int(process.stdout.readline().split()[1])
    written(tmp_path, process, command)
    assert len(Records(tmp_path).end_orphans()) == 1
    assert process.wait(5) == -signal.SIGTERM
    assert has_exited(child)


def has_exited(pid: int) -> bool:
    for _ in range(250):
        if started_ticks(pid) is None:
            return True
        time.sleep(0.02)
    return False


@pytest.mark.parametrize(
    "other",
    [
        {"ticks": 12345},  # the process id was reused by another process
        {"ticks": None},
        {"command": ["llama-server", "--model", "other.gguf"]},
        {"command": ["llama-server"]},
        {"command": []},
        {"command": None},
        {"command": 5},
        {"command": "--model x.gguf"},
        {"boot": "another boot of this machine"},
        {"boot": None},
    ],
    ids=lambda other: f"{next(iter(other))}={str(next(iter(other.values())))[:20]}",
)
def test_process_that_differs_from_its_record_is_left_alone(
    tmp_path: Path, spawn: Spawn, other: dict[str, Any]
) -> None:
    process = spawn(SLEEPER)
    written(tmp_path, process, SLEEPER, **other)
    assert Records(tmp_path).end_orphans() == []
    assert process.poll() is None
    assert list(tmp_path.iterdir()) == []  # and the record is removed


def test_process_of_a_running_appliance_is_left_alone(tmp_path: Path, spawn: Spawn) -> None:
    process, owner = spawn(SLEEPER), spawn(SLEEPER)
    path = written(tmp_path, process, SLEEPER, owner=owner.pid, owner_ticks=started_ticks(owner.pid))
    assert Records(tmp_path).end_orphans() == []
    assert (process.poll(), path.exists()) == (None, True)


def test_process_behind_a_script_is_found_by_its_arguments(tmp_path: Path, spawn: Spawn) -> None:
    process = spawn(SLEEPER)
    written(tmp_path, process, ["/opt/wrapper", *SLEEPER[1:]])
    assert len(Records(tmp_path).end_orphans()) == 1


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "3",
        "null",
        '{"pid": 1}',
        '{"pid": "x", "owner": 1}',
        '{"pid": null, "owner": null}',
        '{"pid": [], "owner": 1}',
        '{"pid": 1e999, "owner": 1}',
        '{"pid": 0, "owner": 2000000, "ticks": null, "command": ["a", "b"]}',
        '{"pid": -1, "owner": 2000000, "ticks": null, "command": ["a", "b"]}',
        '{"pid": 1, "owner": 2000000, "ticks": null, "command": []}',
        '{"pid": 99999999999999999999, "owner": 99999999999999999999}',
        "\x00",
    ],
)
def test_damaged_record_stops_no_process_and_is_removed(tmp_path: Path, text: str) -> None:
    (tmp_path / "5.json").write_text(text.replace('"ticks"', f'"boot": {json.dumps(boot())}, "ticks"'))
    assert Records(tmp_path).end_orphans() == []
    assert list(tmp_path.iterdir()) == []


def boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def test_record_that_cannot_be_written_or_removed_is_tolerated(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below", tmp_path / "none"):
        records = Records(folder)
        if folder.name != "none":
            records.add(os.getpid(), port=1, alias="a", command=["a", "b"])
        records.remove(5)
        assert records.end_orphans() == []
    (tmp_path / "7.json").mkdir()  # a folder in the place of a record, which cannot be removed
    assert Records(tmp_path).end_orphans() == []


def test_facts_read_about_a_process(spawn: Spawn) -> None:
    process = spawn(SLEEPER)
    assert command_of(process.pid) == SLEEPER
    ticks = started_ticks(process.pid)
    assert ticks is not None
    assert survivors({"pid": process.pid, "ticks": ticks, "boot": boot(), "command": SLEEPER})
    process.kill()
    while Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
        time.sleep(0.01)
    assert started_ticks(process.pid) is None  # a zombie does not count as a process
    process.wait()
    assert (started_ticks(process.pid), command_of(process.pid)) == (None, [])


def test_a_command_is_found_by_its_mark_whatever_it_became(tmp_path: Path, spawn: Spawn) -> None:
    """One that left the session, started with other words; another's process with another mark stays."""
    mark, other = "0123456789abcdef", "fedcba9876543210"
    code = "import os, time; os.fork() or os.setsid(); print('up', flush=True); time.sleep(60)"
    started = spawn(["env", f"{MARK}={mark}", sys.executable, "-c", code])
    foreign = spawn(["env", f"{MARK}={other}", *SLEEPER])
    path = written(tmp_path, started, ["serve"], mark=mark)
    record = json.loads(path.read_text())
    found = survivors(record)
    assert started.pid in found
    assert len(found) == 2
    assert survivors(record | {"boot": "another"}) == []
    assert survivors(record | {"mark": "short"}) == []
    assert [row["pid"] for row in Records(tmp_path).end_orphans()] == [started.pid]
    started.wait()
    assert [started_ticks(pid) for pid in found] == [None, None]
    assert foreign.poll() is None
