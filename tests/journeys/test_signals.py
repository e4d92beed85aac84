"""SIGHUP reloads as `ctl reload` does, and systemd is told; with the appliance and the sidecar as processes."""

import json
import os
import pty
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.journeys.running import Process, Spawn, free_port, until

KEY = "a-client-key"


def status_of(running: Process) -> int:
    """Return the status of a chat without a key."""
    body = json.dumps({"messages": [{"role": "user", "content": "x"}]}).encode()
    try:
        request = urllib.request.Request(running.base_url + "/v1/chat/completions", body)
        with urllib.request.urlopen(request, timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def soon(condition: Callable[[], bool], seconds: float = 10) -> bool:
    for _ in range(int(seconds / 0.05)):
        if condition():
            return True
        time.sleep(0.05)
    return condition()


def hang_up(running: Process) -> None:
    running.process.send_signal(signal.SIGHUP)


@pytest.fixture
def variables(tmp_path: Path) -> Path:
    """The file of APPLIANCE_ENV_FILE."""
    path = tmp_path / "appliance.env"
    path.write_text("HEARTBEAT_S=5\n")
    return path


def test_sighup_reads_the_settings_again_while_a_stream_runs(spawn: Spawn, variables: Path) -> None:
    running = spawn(APPLIANCE_ENV_FILE=str(variables))
    found: list[bytes] = []
    body = {"stream": True, "messages": [{"role": "user", "content": "demo: slow 2"}]}
    request = urllib.request.Request(running.base_url + "/v1/chat/completions", json.dumps(body).encode())
    asking = threading.Thread(target=lambda: found.append(urllib.request.urlopen(request, timeout=20).read()))
    asking.start()
    time.sleep(0.4)
    variables.write_text(f"HEARTBEAT_S=5\nAPPLIANCE_API_KEYS={KEY}\n")
    hang_up(running)
    assert soon(lambda: status_of(running) == 401)
    asking.join()
    assert found[0].rstrip().endswith(b"data: [DONE]")
    assert '"changes":["APPLIANCE_API_KEYS"]' in running.text()
    assert KEY not in running.text()


def test_a_wrong_file_changes_nothing_and_is_told(spawn: Spawn, variables: Path) -> None:
    running = spawn(APPLIANCE_ENV_FILE=str(variables))
    variables.write_text(f"HEARTBEAT_S=soon\nAPPLIANCE_API_KEYS={KEY}\n")
    hang_up(running)
    assert soon(lambda: "reload_refused" in running.text())
    assert "HEARTBEAT_S=soon: allowed: a number from 0 to 600" in running.text()
    assert "Nothing was changed: the new settings have problems." in running.text()
    assert status_of(running) == 200
    variables.unlink()
    hang_up(running)
    assert soon(lambda: running.text().count("reload_refused") == 2)
    assert "APPLIANCE_ENV_FILE" in running.text()
    assert status_of(running) == 200
    variables.write_text("HEARTBEAT_S=6\n")
    hang_up(running)
    assert soon(lambda: '"changes":["HEARTBEAT_S"]' in running.text())
    hang_up(running)
    assert soon(lambda: "Nothing differs." in running.text())
    running.process.terminate()
    assert running.process.wait(15) == 0


def test_sighup_does_not_end_a_start(spawn: Spawn) -> None:
    running = spawn(wait=False)
    status = Path(f"/proc/{running.process.pid}/status")

    def holds() -> bool:  # SIGHUP is signal 1, the lowest bit
        rows = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return any(int(rows[name], 16) & 1 for name in ("SigIgn", "SigCgt"))

    assert soon(holds)
    for _ in range(5):
        hang_up(running)
        time.sleep(0.05)
    assert soon(lambda: '"serving"' in running.text())
    assert running.process.poll() is None


def test_a_closed_terminal_ends_it(tmp_path: Path) -> None:
    environ = {
        "PATH": os.environ["PATH"],
        "PROXY_PORT": str(free_port()),
        "CONTROL": "0",
        "STATE_DIR": str(tmp_path / "state"),
        "MACHINE_ID_PATH": str(tmp_path / "machine-id"),
        "GPU_SPOOF_STATE_DIR": str(tmp_path / "gpu"),
        "NAT_REDIRECT": "off",
    }
    log = tmp_path / "log"
    child, terminal = pty.fork()
    if child == 0:
        out = os.open(log, os.O_WRONLY | os.O_CREAT)
        os.dup2(out, 1)
        os.dup2(out, 2)
        os.execve(sys.executable, [sys.executable, "-m", "appliance", "serve"], environ)
    try:
        assert soon(lambda: log.exists() and '"event":"serving"' in log.read_text(), 20)
        os.kill(child, signal.SIGHUP)
        assert soon(lambda: "Nothing differs." in log.read_text())
        os.close(terminal)
        ended: list[int] = []
        assert soon(lambda: bool(ended) or ended.append(os.waitpid(child, os.WNOHANG)[0]) or ended.pop() != 0)
        child = 0
    finally:
        if child:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
    assert '"event":"terminal_closed"' in log.read_text()
    assert '"event":"stopped"' in log.read_text()


# ---- the service manager


@pytest.fixture
def notified(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(tmp_path / "notify"))
        receiver.settimeout(10)
        yield receiver


def next_but_pings(notified: socket.socket) -> bytes:
    while (message := notified.recv(999)) == b"WATCHDOG=1":
        pass
    return message


def test_systemd_is_told_of_every_step(spawn: Spawn, tmp_path: Path, notified: socket.socket) -> None:
    running = spawn(NOTIFY_SOCKET=str(tmp_path / "notify"), WATCHDOG_USEC="200000")
    ready = next_but_pings(notified)
    assert ready == f"READY=1\nSTATUS=Serving on {running.base_url.removeprefix('http://')}.".encode()
    assert [notified.recv(999) for _ in range(3)] == [b"WATCHDOG=1"] * 3
    hang_up(running)
    assert next_but_pings(notified).startswith(b"RELOADING=1\nMONOTONIC_USEC=")
    assert next_but_pings(notified) == ready
    running.process.terminate()
    assert next_but_pings(notified).startswith(b"STOPPING=1\n")
    assert running.process.wait(15) == 0


# ---- the sidecar


def start_sidecar(
    tmp_path: Path, variables: Path, port: int, **more: str
) -> tuple[subprocess.Popen[bytes], Path]:
    """Start a sidecar; give it and its log."""
    log = tmp_path / f"sidecar-{port}.log"
    environ = {
        "PATH": os.environ["PATH"],
        "STATE_DIR": str(tmp_path / "state"),
        "APPLIANCE_ENV_FILE": str(variables),
        "LOG_FORMAT": "json",
        "NOTIFY_SOCKET": str(tmp_path / "notify"),
        **more,
    }
    command = [sys.executable, "-m", "appliance", "sidecar", "-E", "vllm", "-H", "127.0.0.1", "-P", str(port)]
    with log.open("wb") as out:
        return subprocess.Popen(command, env=environ, stdout=out, stderr=out), log


async def test_a_sidecar_follows_its_file_and_holds_its_folder(
    tmp_path: Path, variables: Path, notified: socket.socket
) -> None:
    port = free_port()
    first, log = start_sidecar(tmp_path, variables, port, CONFIG_WATCH="1")
    try:
        assert notified.recv(999).startswith(b"READY=1")
        second, said = start_sidecar(tmp_path, variables, free_port(), NOTIFY_SOCKET="")
        assert second.wait(20) == 1
        assert f"in use by a sidecar, process {first.pid}. Stop that one" in said.read_text()
        variables.write_text(f"APPLIANCE_API_KEYS={KEY}\n")
        assert await until(lambda: '"event":"reloaded"' in log.read_text())
        assert '"event":"config_changed"' in log.read_text()
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5)
        first.terminate()
        assert first.wait(15) == 0
    finally:
        if first.poll() is None:
            first.kill()
            first.wait()


def test_a_sidecar_reloads_and_tells_too(tmp_path: Path, variables: Path, notified: socket.socket) -> None:
    port = free_port()
    process, log = start_sidecar(tmp_path, variables, port)
    try:
        ready = notified.recv(999)
        assert ready == f"READY=1\nSTATUS=Serving on 127.0.0.1:{port}.".encode()
        variables.write_text("HEARTBEAT_S=soon\n")
        process.send_signal(signal.SIGHUP)
        assert notified.recv(999).startswith(b"RELOADING=1")
        assert notified.recv(999) == ready
        assert "HEARTBEAT_S=soon" in log.read_text()
        variables.write_text(f"APPLIANCE_API_KEYS={KEY}\n")
        process.send_signal(signal.SIGHUP)
        assert notified.recv(999).startswith(b"RELOADING=1")
        assert notified.recv(999) == ready
        assert '"event":"reloaded"' in log.read_text()
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
            assert answer.status == 200
        process.terminate()
        assert notified.recv(999).startswith(b"STOPPING=1")
        assert process.wait(15) == 0
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
