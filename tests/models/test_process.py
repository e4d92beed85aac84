"""One llama-server process: small programs that misbehave, and the real server."""

import asyncio
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from appliance.base.logs import SECRETS
from appliance.base.tasks import Tasks
from appliance.base.wire.pool import ConnectionPool
from appliance.base.wire.types import PoolLimits
from appliance.models.runner import log_file
from appliance.models.runner import process as process_module
from appliance.models.runner.failures import LoadFailed
from appliance.models.runner.log_file import log_name
from appliance.models.runner.ports import find_free_port, owner_of
from appliance.models.runner.proc import memory_bytes, started_ticks
from appliance.models.runner.process import (
    Process,
    StopTimes,
    environment,
    pause_after,
)
from tests.models.manager_harness import until
from tests.tools.tiny_models import CONTEXT

pytestmark = pytest.mark.timeout(40)
SOON = StopTimes(term_s=5.0, kill_s=5.0)
WITH_A_DEAF_CHILD = """
inner = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(60)"
child = subprocess.Popen([sys.executable, "-S", "-c", inner], stdout=subprocess.PIPE)
child.stdout.readline()
print("child", child.pid, flush=True)
serve(200)"""


@pytest.mark.parametrize("loads_s", [0.05, 0.3, 1.0, 2.0, 5.0, 30.0, 119.0])
def test_ready_is_noticed_within_a_tenth_of_the_load(loads_s):
    at_s = 0.0
    while at_s < loads_s:
        at_s += pause_after(at_s)
    assert at_s - loads_s <= max(0.01, min(0.25, loads_s / 10)) + 1e-9


def test_long_load_is_not_probed_all_the_time():
    at_s, looks = 0.0, 0
    while at_s < 120.0:
        at_s, looks = at_s + pause_after(at_s), looks + 1
    assert looks < 600


# What a program of these tests is made of: `serve(port)` answers each request with the next of the statuses,
# and repeats the last one.
COMMON = """
import os, signal, socket, subprocess, sys, time
port = int(sys.argv[-1])
def serve(*statuses):
    listener = socket.socket(); listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", port)); listener.listen()
    while True:
        connection, _ = listener.accept()
        connection.recv(65536)
        status = statuses[0]; statuses = statuses[1:] or statuses
        connection.sendall(f"HTTP/1.1 {status} X\\r\\nContent-Length: 2\\r\\nConnection: close\\r\\n\\r\\n{{}}".encode()); connection.close()
"""
Make = Callable[..., Process]


def unused_port() -> int:
    """Give a port of a range from which the kernel assigns none by itself."""
    return find_free_port((), 20_000 + os.getpid() % 9000, 29_999)


@pytest.fixture
async def make(tmp_path: Path) -> AsyncIterator[Make]:
    """Make processes of small programs: `make("serve(503, 200)")`, `make(command=[…])`.

    They end with the test.
    """
    tasks, wire = Tasks(), ConnectionPool(PoolLimits())
    made: list[Process] = []

    def begin(
        code: str = "",
        *,
        command: list[str] | None = None,
        port: int = 0,
        log: str = "runner.log",
        environ: dict[str, str] | None = None,
    ) -> Process:
        port = port or unused_port()
        if command is None:
            script = tmp_path / f"program{len(made)}.py"
            script.write_text(f"{COMMON}\n{code}\n")
            command = [sys.executable, "-S", "-E", str(script), str(port)]
        process = Process(
            command,
            port=port,
            log_path=tmp_path / "logs" / log,
            environ=environ or {"PATH": os.environ["PATH"]},
            tasks=tasks,
            wire=wire,
        )
        made.append(process)
        return process

    yield begin
    for process in made:
        if process.is_running:
            assert await process.stop(StopTimes(0.2, 5.0)) != "stuck"
    await tasks.close()
    await wire.close()


async def load_failure(process: Process, limit_s: float = 10.0) -> LoadFailed:
    with pytest.raises(LoadFailed) as caught:
        await process.wait_ready(limit_s, lambda: None)
    return caught.value


def is_gone(pid: int) -> bool:
    return started_ticks(pid) is None


# ---- start


async def test_port_that_another_program_shares_is_not_used(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = make("serve(200)")
    monkeypatch.setattr(process_module, "owner_of", lambda port, pid: "shared")
    await process.start()
    failure = await load_failure(process)
    assert failure.reason == f"another program listens on port {process.port} as well"
    assert (failure.is_port, failure.can_retry) == (True, True)


async def test_server_is_ready_when_its_health_check_passes(make: Make) -> None:
    looks: list[bool] = []
    process = make("serve(503, 503, 200)")
    await process.start()
    await process.wait_ready(10, lambda: looks.append(process.is_listening))
    assert process.is_running
    assert looks[0] is False
    assert looks[-1] is True  # it was seen to listen before it was ready
    assert (await process.stop(SOON), process.exit_code, process.is_running) == (
        "term",
        -signal.SIGTERM,
        False,
    )
    assert await process.stop(SOON) == "exited"


@pytest.mark.parametrize("code", ["time.sleep(60)", "serve(503)", "serve(404)"])
async def test_server_that_does_not_become_ready_may_be_retried(make: Make, code: str) -> None:
    process = make(code)
    await process.start()
    failure = await load_failure(process, 0.3)
    assert (failure.reason, failure.can_retry) == ("it was not ready within 0.3 s (wait_ready_sec)", True)


async def test_response_of_another_process_does_not_count(make: Make) -> None:
    other = make("serve(200)")
    await other.start()
    await other.wait_ready(10, lambda: None)
    process = make("time.sleep(60)", port=other.port, log="second.log")
    await process.start()
    assert (await load_failure(process, 0.3)).can_retry
    assert owner_of(other.port, other.pid) == "ours"
    assert owner_of(other.port, process.pid) == "foreign"


async def test_script_that_starts_the_real_server_is_supported(make: Make) -> None:
    process = make(
        "child = subprocess.Popen([sys.executable, '-S', '-c', open(sys.argv[0]).read().split('child =')[0] + 'serve(200)', str(port)]); "
        "print('child', child.pid, flush=True); child.wait()"
    )
    await process.start()
    await process.wait_ready(10, lambda: None)
    child = int(process.log_tail()[0].split()[1])
    os.kill(process.pid, signal.SIGKILL)  # it crashes, and leaves its child behind
    await process.exited.wait()
    await until(lambda: is_gone(child))


# The list of permanent errors, each as llama-server writes it; what must not be taken for one of it; and what only looks
# like it.
@pytest.mark.parametrize(
    ("message", "can_retry"),
    [
        ("error: Unsupported cache type: zz", False),
        ('error while handling argument "--ctx-size": stoi', False),
        ("main: Model file not found: /models/x.gguf", False),
        ("error: Invalid model path", False),
        ("/src/ggml.c:1234: GGML_ASSERT(n_dims <= 4) failed", False),
        (
            "0.00.128.662 E llama_model_load: error loading model: llama_model_loader: failed to load model from x.gguf",
            False,
        ),
        ("error: unknown argument: --nonsense", False),
        ("error: invalid argument: --nonsense", False),
        ("0.00.1 E srv    load_model: failed to load model, 'x.gguf'", False),
        ("terminate called after throwing an instance of 'std::bad_alloc'", True),
        ("CUDA error: an illegal memory access was encountered", True),
        (
            "0.00.192.671 E srv         start: couldn't bind HTTP server socket, hostname: 127.0.0.1, port: 1",
            True,
        ),
        ("bind: Address already in use (failed to load model follows)", True),
        ("", True),
    ],
)
async def test_log_decides_whether_a_load_is_retried(make: Make, message: str, can_retry: bool) -> None:
    process = make(
        f"print({message!r}, file=sys.stderr, flush=True); print('srv: exiting due to an error', flush=True); sys.exit(1)"
    )
    await process.start()
    failure = await load_failure(process)
    assert failure.can_retry is can_retry
    assert failure.reason.startswith("llama-server exited with code 1")
    if message and "terminate" not in message:
        assert message in failure.reason  # the first complaint, not the last
    assert failure.is_port == ("bind" in message.lower())


async def test_server_killed_while_loading_is_reported_as_killed(make: Make) -> None:
    process = make("print('warning: failed to mlock, harmless', flush=True); os.kill(os.getpid(), 9)")
    await process.start()
    failure = await load_failure(process)
    assert (failure.reason, failure.can_retry) == ("llama-server was killed by signal 9", True)


@pytest.mark.parametrize(
    ("name", "mode", "message"),
    [
        ("missing", None, "No such file"),
        ("plain", 0o644, "Permission denied"),
        ("", None, "Permission denied"),
    ],
)
async def test_a_program_that_cannot_be_started_is_a_permanent_failure(
    make: Make,
    tmp_path: Path,
    name: str,
    mode: int | None,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(process_module.shutil, "which", lambda _: None)  # no setpriv on this machine
    if mode is not None:
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(mode)
    process = make(command=[str(tmp_path / name)])
    with pytest.raises(LoadFailed, match=f"cannot be started: {message}") as caught:
        await process.start()
    assert not caught.value.can_retry
    assert (process.is_running, await process.stop(SOON)) == (False, "exited")


async def test_a_missing_program_is_permanent_behind_setpriv_too(make: Make, tmp_path: Path) -> None:
    process = make(command=[str(tmp_path / "missing"), "--port", "1"])
    await process.start()
    failure = await load_failure(process)
    assert "missing" in failure.reason
    assert not failure.can_retry


async def test_a_log_that_cannot_be_written_is_a_permanent_failure(make: Make, tmp_path: Path) -> None:
    (tmp_path / "logs").write_text("a file where the folder should be")
    with pytest.raises(LoadFailed, match=r"the log .*runner\.log cannot be written") as caught:
        await make("serve(200)").start()
    assert not caught.value.can_retry


# ---- stop


async def test_process_that_ignores_sigterm_is_killed_with_children(make: Make) -> None:
    process = make("signal.signal(signal.SIGTERM, signal.SIG_IGN)" + WITH_A_DEAF_CHILD)
    await process.start()
    await process.wait_ready(10, lambda: None)
    child = int(process.log_tail()[0].split()[1])
    assert await process.stop(StopTimes(0.2, 5.0)) == "kill"
    assert process.exit_code == -signal.SIGKILL
    await until(lambda: is_gone(child) and is_gone(process.pid))


async def test_children_left_after_a_clean_exit_are_stopped_too(make: Make) -> None:
    process = make(WITH_A_DEAF_CHILD)
    await process.start()
    await process.wait_ready(10, lambda: None)
    child = int(process.log_tail()[0].split()[1])
    assert await process.stop(SOON) == "term"
    await until(lambda: is_gone(child))


async def test_two_concurrent_stops_both_see_the_exit(make: Make) -> None:
    process = make("serve(200)")
    await process.start()
    await process.wait_ready(10, lambda: None)
    assert await asyncio.gather(process.stop(SOON), process.stop(SOON)) == ["term", "term"]


async def test_process_that_cannot_be_ended_is_reported_stuck(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = make("serve(200)")
    await process.start()
    with monkeypatch.context() as patch:
        patch.setattr(process, "_signal", lambda number: None)  # like a process that hangs in the kernel
        assert await process.stop(StopTimes(0.05, 0.05)) == "stuck"
    assert process.is_running


# ---- environment and logs


async def test_server_inherits_no_secrets(make: Make) -> None:
    ours = {
        "PATH": os.environ["PATH"],
        "HOME": "/root",
        "LD_LIBRARY_PATH": "/opt/lib",
        "CUDA_CACHE_PATH": "/c",
        "NVIDIA_VISIBLE_DEVICES": "all",
        "LC_ALL": "C",
        "OMP_NUM_THREADS": "2",
    }
    secrets = {
        "NOVITA_API_KEY": "sk-1",
        "NOVITA_API_KEY_FILE": "/run/s",
        "CONTROL_TOKEN": "t",
        "API_KEYS": "k",
        "LLAMA_API_KEY": "k",
        "HF_TOKEN": "h",
        "AWS_SECRET_ACCESS_KEY": "a",
        "OPENAI_API_KEY": "o",
        "MY_PATH": "x",
        "XPATH": "x",
        "PATHS": "x",
        "LLAMA_ARG_MODEL": "y",
        "LD_PRELOAD": "z",
    }
    process = make("serve(200)", environ=environment(ours | secrets, (-1,)))
    await process.start()
    await process.wait_ready(10, lambda: None)
    seen = dict(
        pair.split("=", 1) for pair in Path(f"/proc/{process.pid}/environ").read_text().split("\0") if pair
    )
    assert seen == ours | {"GGML_NO_BACKTRACE": "1"}
    assert not any(value in Path(f"/proc/{process.pid}/cmdline").read_text() for value in ("sk-1",))


@pytest.mark.parametrize(
    ("devices", "hides", "expected"),
    [
        ((1,), False, {"CUDA_VISIBLE_DEVICES": "1", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}),
        ((0, 2), False, {"CUDA_VISIBLE_DEVICES": "0,2", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}),
        ((-1,), False, {"CUDA_VISIBLE_DEVICES": "7"}),  # a GPU whose driver reports nothing is used as before
        ((-1,), True, {"CUDA_VISIBLE_DEVICES": "-1", "HIP_VISIBLE_DEVICES": "-1"}),
    ],
)
def test_server_sees_only_its_gpus(devices: tuple[int, ...], hides: bool, expected: dict[str, str]) -> None:
    assert environment({"CUDA_VISIBLE_DEVICES": "7"}, devices, hides_gpus=hides) == expected | {
        "GGML_NO_BACKTRACE": "1"
    }


async def test_at_most_three_former_logs_are_kept(make: Make, tmp_path: Path) -> None:
    for number in range(6):
        process = make(f"print('life {number}')")
        await process.start()
        await process.exited.wait()
    logs = tmp_path / "logs"
    assert {path.name: path.read_text() for path in sorted(logs.iterdir())} == {
        "runner.log": "life 5\n",
        "runner.log.1": "life 4\n",
        "runner.log.2": "life 3\n",
        "runner.log.3": "life 2\n",
    }
    assert (logs / "runner.log").stat().st_mode & 0o007 == 0  # no other user can read the prompts


async def test_a_log_that_grows_too_large_is_cut_while_it_runs(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_file, "MAX_LOG_BYTES", 1000)
    process = make("print('x' * 2000, flush=True); serve(200, 200); ")
    await process.start()
    await process.wait_ready(10, lambda: None)
    process.trim_log()
    former = Path(f"{process.log_path}.1")
    assert (process.log_path.stat().st_size, former.read_text()) == (0, "x" * 999 + "\n")  # its end
    assert former.stat().st_mode & 0o007 == 0  # no other user can read the prompts
    process.trim_log()  # there is nothing to cut
    assert former.stat().st_size == 1000
    process.log_path.unlink()
    process.trim_log()  # a missing log is no error
    assert process.log_tail() == []


async def test_a_log_is_cut_while_its_process_is_not_ready_yet(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_file, "MAX_LOG_BYTES", 1000)
    monkeypatch.setattr(process_module, "LOG_LOOK_S", 0.02)
    process = make("print('x' * 2000, flush=True); time.sleep(60)")
    await process.start()
    await until(lambda: Path(f"{process.log_path}.1").exists() and process.log_path.stat().st_size == 0)


async def test_after_a_cut_the_log_continues_at_its_beginning(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_file, "MAX_LOG_BYTES", 10)
    process = make(
        "print('before', 'x' * 99, flush=True); sys.stdin; signal.signal(signal.SIGUSR1, lambda *_: print('after', flush=True)); serve(200)"
    )
    await process.start()
    await process.wait_ready(10, lambda: None)
    process.trim_log()
    os.kill(process.pid, signal.SIGUSR1)
    await until(lambda: process.log_path.read_text() == "after\n")


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        ("tiny", "tiny_8085.log"),
        ("org/model:7b", "org_model_7b_8085.log"),
        ("../../etc/passwd", ".._.._etc_passwd_8085.log"),
        ("..", ".._8085.log"),
        ("模型 β", "_____8085.log"),
        ("a\\b", "a_b_8085.log"),
        ("x" * 128, "x" * 100 + "_8085.log"),
    ],
)
def test_unusual_names_give_valid_file_names(alias: str, name: str, tmp_path: Path) -> None:
    assert log_name(alias, 8085) == name
    assert (tmp_path / name).resolve().parent == tmp_path.resolve()


async def test_the_end_of_a_log_is_read_whatever_is_in_it(make: Make) -> None:
    process = make(
        "sys.stdout.buffer.write(b'a' * 100_000 + b'\\n' + b'\\xff\\xfe' + b'\\n' + b'last'); sys.stdout.flush()"
    )
    await process.start()
    await process.exited.wait()
    assert process.log_tail(2) == ["\ufffd\ufffd", "last"]


async def test_the_end_of_a_log_has_no_secret_and_no_colours(make: Make) -> None:
    SECRETS.learn(["a-token-of-a-model"])
    process = make("print('\\x1b[31mrefused: a-token-of-a-model\\x1b[0m', flush=True)")
    await process.start()
    await process.exited.wait()
    assert process.log_tail(1) == ["refused: [secret]"]


# ---- ports


def test_lowest_free_port_is_found() -> None:
    with socket.socket() as one, socket.socket() as other:
        first = unused_port()
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        one.bind(("127.0.0.1", first))
        one.listen()
        assert find_free_port((), first, first + 50) != first
        with pytest.raises(LoadFailed, match=f"all ports from {first} to {first} are taken") as caught:
            find_free_port((), first, first)
        assert caught.value.can_retry
        with pytest.raises(LoadFailed):
            find_free_port({first + 1}, first, first + 1)
        other.bind(("0.0.0.0", 0))  # one that listens everywhere listens here too
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(LoadFailed):
            find_free_port((), port, port)


def test_a_process_that_has_ended_owns_nothing_and_takes_nothing() -> None:
    assert owner_of(1, 4_000_000) == "foreign"
    assert memory_bytes(4_000_000) == (0, 0)


# ---- the real server


def real(binary: str, folder: Path, port: int, *more: str) -> list[str]:
    return [
        binary,
        "--model",
        str(folder / "tiny-chat.gguf"),
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--ctx-size",
        str(CONTEXT),
        "-t",
        "1",
        *more,
    ]


async def test_real_server_starts_takes_memory_and_stops(
    make: Make, llama_binary: str, tiny_models: Path
) -> None:
    port = unused_port()
    process = make(command=real(llama_binary, tiny_models, port), port=port)
    await process.start()
    await process.wait_ready(30, lambda: None)
    resident, of_files = memory_bytes(process.pid)
    assert resident > of_files > 1_000_000
    assert owner_of(port, process.pid) == "ours"
    assert await process.stop(StopTimes()) == "term"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--nonsense",), "invalid argument: --nonsense"),
        (("--cache-type-k", "zz"), "zz"),
        (("--model", "/none.gguf"), "/none.gguf"),
    ],
)
async def test_permanent_failures_of_the_real_server(
    make: Make,
    llama_binary: str,
    tiny_models: Path,
    more: tuple[str, ...],
    message: str,
) -> None:
    port = unused_port()
    process = make(command=real(llama_binary, tiny_models, port, *more), port=port)
    await process.start()
    failure = await load_failure(process, 30)
    assert message in failure.reason
    assert not failure.can_retry


async def test_real_server_reports_that_its_port_is_taken(
    make: Make, llama_binary: str, tiny_models: Path
) -> None:
    with socket.socket() as squatter:
        squatter.bind(("127.0.0.1", 0))
        squatter.listen()
        port = squatter.getsockname()[1]
        process = make(command=real(llama_binary, tiny_models, port), port=port)
        await process.start()
        failure: Any = await load_failure(process, 30)
    assert failure.is_port
    assert failure.can_retry
    assert "couldn't bind" in failure.reason
