"""One appliance per STATE_DIR: who is refused, and when the lock is free again."""

import errno
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from appliance.host import state_lock
from appliance.host.state_lock import NAME, SIDECAR, StateInUse, holding_state

HOLDER = """
import sys, subprocess
from pathlib import Path
from appliance.host.state_lock import holding_state
with holding_state(Path(sys.argv[1])):
    child = subprocess.Popen(["sleep", "60"])
    print(child.pid, flush=True)
    sys.stdin.read()
"""


def test_the_second_one_is_refused_with_the_first_ones_process(tmp_path: Path) -> None:
    with (
        holding_state(tmp_path / "state"),
        pytest.raises(StateInUse, match=rf"in use by another appliance, process {os.getpid()}\. Stop"),
        holding_state(tmp_path / "state"),
    ):
        pass
    with holding_state(tmp_path / "state"):
        pass


def test_one_on_another_machine_is_named_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with holding_state(tmp_path):
        monkeypatch.setattr(socket, "gethostname", lambda: "elsewhere")
        (tmp_path / NAME).write_text("7 pod-1\n")
        with pytest.raises(StateInUse, match="process 7 on 'pod-1'"), holding_state(tmp_path):
            pass


def test_a_sidecar_is_named_as_one(tmp_path: Path) -> None:
    with (
        holding_state(tmp_path, what=SIDECAR),
        pytest.raises(StateInUse, match=rf"in use by a sidecar, process {os.getpid()}\. Stop"),
        holding_state(tmp_path),
    ):
        pass


@pytest.mark.parametrize("text", ["", "x y", "1 2 3", "\0\xff" * 500])
def test_a_damaged_file_refuses_all_the_same(tmp_path: Path, text: str) -> None:
    with holding_state(tmp_path):
        (tmp_path / NAME).write_text(text)
        with pytest.raises(StateInUse, match="whose process id is not known"), holding_state(tmp_path):
            pass


def test_a_forgotten_file_refuses_no_one(tmp_path: Path) -> None:
    (tmp_path / NAME).write_text("1 somewhere\n")
    with holding_state(tmp_path):
        assert (tmp_path / NAME).read_text().split()[0] == str(os.getpid())


def test_the_lock_does_not_outlive_kill_9_although_a_child_does(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        child = int(holder.stdout.readline())
        try:
            with pytest.raises(StateInUse, match=f"process {holder.pid}"), holding_state(tmp_path):
                pass
            holder.kill()
            holder.wait()
            with holding_state(tmp_path):
                os.kill(child, 0)
        finally:
            os.kill(child, signal.SIGKILL)


def test_a_folder_that_cannot_be_locked_is_used_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    with capture_logs() as logs, holding_state(tmp_path / "file" / "state"):
        pass
    assert [line["event"] for line in logs] == ["state_not_locked"]

    def refused(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(state_lock.fcntl, "flock", refused)
    with capture_logs() as logs, holding_state(tmp_path):
        pass
    assert [line["reason"] for line in logs] == ["No locks available"]
