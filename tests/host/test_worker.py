"""The worker: started when we are ready, watched, stopped with its children, kept from our secrets."""

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from appliance.base.clock import SystemClock
from appliance.base.log_buffer import LogBuffer
from appliance.base.settings import InvalidSettings
from appliance.host.settings import HostSettings
from appliance.host.worker import guard as worker_guard
from appliance.host.worker.restarts import RestartPolicy
from appliance.host.worker.worker import Worker, build_command, build_environment
from tests.journeys.running import until

ROOT = Path(__file__).parents[2]
CLI = ROOT / "tests" / "fakes" / "worker_cli.py"


async def ready() -> bool:
    return True


def worker(
    *words: str,
    simulated: bool = False,
    is_ready=ready,
    restarts: RestartPolicy | None = None,
    **variables: str,
) -> tuple[Worker, LogBuffer]:
    environ = {
        "PATH": os.environ["PATH"],
        "WORKER_COMMAND": " ".join([sys.executable, str(CLI), *words]),
        "WORKER_STOP_GRACE_S": "0.5",
        **variables,
    }
    lines = LogBuffer()
    made = Worker(
        HostSettings.from_env({k: v for k, v in environ.items() if k.lower() in HostSettings.model_fields}),
        environ=environ,
        is_gpu_simulated=simulated,
        is_ready=is_ready,
        lines=lines,
        clock=SystemClock(),
        restarts=restarts,
    )
    return made, lines


def state(one: Worker) -> str:
    return one.status.value.state


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


async def test_worker_runs_and_its_exit_code_is_reported() -> None:
    one, lines = worker("print:hello", "exit:3")
    await one.start()
    assert await until(lambda: state(one) == "exited")
    assert one.status.value.exit_code == 3
    assert [(line.source, line.text) for line in lines.tail(5)] == [("worker.stdout", "hello")]
    await one.close()


async def test_worker_waits_until_the_appliance_is_ready() -> None:
    asked = 0

    async def later() -> bool:
        nonlocal asked
        asked += 1
        return asked > 2

    one, _ = worker("sleep:60", is_ready=later)
    await one.start()
    assert state(one) == "waiting"
    assert await until(lambda: state(one) == "running")
    assert asked == 3
    await one.close()


async def test_stubborn_worker_and_its_children_are_killed() -> None:
    one, lines = worker("stubborn", "child", "sleep:60")
    await one.start()
    assert await until(lambda: len(lines.tail(5)) == 2)
    pid, child = one.status.value.pid, int(lines.tail(1)[0].text.split()[1])
    await one.stop()
    assert (state(one), one.status.value.exit_code) == ("stopped", -9)
    assert await until(lambda: not alive(pid) and not alive(child))
    await one.close()


async def test_detached_children_stop_with_the_worker() -> None:
    """In a session of their own, and with a parent that exited: on request, and when the worker exits."""
    for words in (("escape", "sleep:60"), ("escape", "exit:0")):
        one, lines = worker(*words)
        await one.start()
        assert await until(lambda lines=lines: bool(lines.tail(5)))
        escaped = int(lines.tail(1)[0].text.split()[1])
        if words[-1] == "exit:0":
            assert await until(lambda one=one: state(one) == "exited")
            assert one.status.value.exit_code == 0
        else:
            assert alive(escaped)
            await one.stop()
        assert await until(lambda escaped=escaped: not alive(escaped))
        await one.close()


async def test_stop_is_carried_through_when_its_caller_leaves() -> None:
    one, lines = worker("stubborn", "child", "sleep:60")
    await one.start()
    assert await until(lambda: len(lines.tail(5)) == 2)
    child = int(lines.tail(1)[0].text.split()[1])
    asking = asyncio.create_task(one.stop())
    await asyncio.sleep(0.05)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    assert await until(lambda: state(one) == "stopped" and not alive(child))
    await one.start()
    assert await until(lambda: state(one) == "running")
    await one.close()


async def test_flood_of_output_does_not_delay_other_tasks() -> None:
    one, lines = worker("flood", "print:after the flood", "exit:0")
    await one.start()
    longest_s, last_s = 0.0, asyncio.get_running_loop().time()
    while state(one) != "exited":
        await asyncio.sleep(0.005)
        now_s = asyncio.get_running_loop().time()
        longest_s, last_s = max(longest_s, now_s - last_s), now_s
    texts = [line.text for line in lines.tail(2000)]
    assert texts[-1] == "after the flood" or "bytes of output left out" in texts[-1]
    assert sum("bytes of output left out" in text for text in texts) >= 1
    assert longest_s < 1.0
    await one.close()


async def test_endless_line_is_cut_and_reading_goes_on() -> None:
    one, lines = worker("endless:20000000", "exit:0")
    await one.start()
    assert await until(lambda: state(one) == "exited", seconds=30)
    first, *others = [line.text for line in lines.tail(2000)]
    assert first == "x" * 8192 + "…"
    assert sum(int(text.split()[0][1:]) for text in others) == 20_000_000 - 8192
    await one.close()


async def test_program_that_cannot_run_fails_with_the_reason(tmp_path: Path) -> None:
    script = tmp_path / "worker"
    script.write_text("#!/nowhere/interpreter\n")
    script.chmod(0o755)
    one, _ = worker(WORKER_COMMAND=str(script), KEEPALIVE="1")
    await one.start()
    assert await until(lambda: state(one) == "failed")
    assert one.status.value.reason == f"{str(script)!r} cannot be started: No such file or directory"
    await one.close()


async def test_worker_process_has_default_signals_and_files() -> None:
    """A session of its own that its signals do not leave; no signal ignored or blocked, only 0 to 2 open."""
    command = (
        'sh -c \'trap "" HUP; kill -HUP 0; grep -E "Sig(Blk|Ign)" /proc/self/status; ls /proc/self/fd; '
        'cut -d" " -f1,6 /proc/$$/stat; echo $$\''
    )
    one, lines = worker(WORKER_COMMAND=command)
    await one.start()
    assert await until(lambda: state(one) == "exited")
    texts = [line.text for line in lines.tail(9)]
    assert one.status.value.exit_code == 0
    # The standard signals 1 to 31; those above belong to the C library, and may be ignored by our parent.
    masks = {name: int(mask, 16) & 0x7FFFFFFF for name, mask in (text.split(":\t") for text in texts[:2])}
    assert masks == {"SigBlk": 0, "SigIgn": 1}  # HUP, by its own wish
    assert texts[2:6] == ["0", "1", "2", "3"]  # 3 is the folder that ls reads
    assert texts[6].split() == [texts[7]] * 2
    await one.close()


async def test_the_process_id_is_the_workers_own() -> None:
    one, lines = worker("pid", "sleep:60")
    await one.start()
    assert await until(lambda: bool(lines.tail(1)))
    assert lines.tail(1)[0].text == str(one.status.value.pid)
    await one.close()


async def test_children_get_the_grace_time_to_stop() -> None:
    """A helper that saves its state needs longer than the worker itself, and less than the grace."""
    one, lines = worker("helper:0.4", "sleep:60", WORKER_STOP_GRACE_S="10")
    await one.start()
    assert await until(lambda: len(lines.tail(9)) == 1)
    began_s = asyncio.get_running_loop().time()
    await one.stop()
    assert [line.text for line in lines.tail(1)] == ["helper saved"]
    assert asyncio.get_running_loop().time() - began_s < 5
    await one.close()


async def test_stop_at_any_moment_of_the_start_is_not_lost() -> None:
    one, _ = worker("sleep:60", WORKER_STOP_GRACE_S="30")
    for number in range(20):
        await one.start()
        await asyncio.sleep(number * 0.003)
        await asyncio.wait_for(one.stop(), 10)
        assert state(one) == "stopped"
    await one.close()


async def test_restart_is_carried_through_when_its_caller_leaves() -> None:
    one, lines = worker("stubborn", "sleep:60")
    await one.start()
    assert await until(lambda: len(lines.tail(1)) == 1)
    first = one.status.value.pid
    asking = asyncio.create_task(one.restart())
    assert await until(lambda: state(one) == "stopping")
    asking.cancel()
    assert await until(lambda: state(one) == "running" and one.status.value.pid != first)
    await one.close()


async def test_unwritable_log_does_not_stop_the_worker(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Broken:
        def __getattr__(self, _: str):
            def record(event: str, **_: object) -> None:
                if event == "worker_output":
                    raise BrokenPipeError

            return record

    monkeypatch.setattr("appliance.host.worker.worker.log", Broken())
    one, lines = worker("print:a", "endless:1000000", "print:", "print:b", "exit:0")
    await one.start()
    assert await until(lambda: state(one) == "exited")
    assert "b" in [line.text for line in lines.tail(9)]
    await one.close()


async def test_no_worker_outlives_us(tmp_path: Path) -> None:
    """Killed without a chance to say anything: the kernel reports it to the guard."""
    script = """
import asyncio, os, signal
from tests.host.test_worker import state, until, worker
async def main():
    one, lines = worker("stubborn", "child", "escape", "sleep:60")
    await one.start()
    await until(lambda: len(lines.tail(9)) == 3)
    print(*[line.text for line in lines.tail(9)], one.status.value.pid, sep="|", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
asyncio.run(main())
"""
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        timeout=30,
    )
    assert done.returncode == -9, done.stderr
    pids = [
        int(word)
        for word in done.stdout.strip()
        .splitlines()[-1]
        .replace("child ", "")
        .replace("escaped ", "")
        .split("|")[1:]
    ]
    assert len(pids) == 3
    assert await until(lambda: not any(alive(pid) for pid in pids))


async def test_no_worker_outlives_us_whenever_we_are_killed(tmp_path: Path) -> None:
    """At a moment of the start, each time another one."""
    script = """
import asyncio, os, signal, sys
from appliance.host.worker.worker import _start_guard
async def main():
    await _start_guard(["/bin/sleep", sys.argv[2]], {})
    await asyncio.sleep(float(sys.argv[1]))
    os.kill(os.getpid(), signal.SIGKILL)
asyncio.run(main())
"""
    mark = f"600.0{os.getpid()}"

    def left() -> list[str]:
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                words = path.read_bytes().split(b"\0")
            except OSError:
                continue
            if words[0] == b"/bin/sleep" and mark.encode() in words:
                found.append(path.parts[2])
        return found

    async def one(delay_s: float) -> None:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", script, str(delay_s), mark, cwd=ROOT
        )
        assert await process.wait() == -9

    for number in range(0, 16, 2):
        await asyncio.gather(one(number * 0.004), one(number * 0.004 + 0.004))
    assert await until(lambda: not left())


def test_unkillable_process_does_not_block_the_guard(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def refuse(pid: int, number: int) -> None:
        asked.append((pid, number))
        raise PermissionError

    with subprocess.Popen(["/bin/sleep", "60"]) as child:
        try:
            monkeypatch.setattr(worker_guard.os, "kill", refuse)
            worker_guard.kill_all()
        finally:
            monkeypatch.undo()
            child.kill()
    assert (child.pid, 9) in asked


async def test_killed_worker_is_reported_by_its_signal() -> None:
    one, _ = worker("die")
    await one.start()
    assert await until(lambda: state(one) == "exited")
    assert one.status.value.exit_code == -9
    assert "signal 9" in one.status.value.reason
    await one.close()


async def test_keepalive_restarts_until_it_only_crashes() -> None:
    one, _ = worker(
        "exit:1", KEEPALIVE="1", restarts=RestartPolicy(first_s=0.01, longest_s=0.02, crash_limit=3)
    )
    await one.start()
    assert await until(lambda: state(one) == "failed")
    assert one.status.value.restarts == 2
    await one.close()


async def test_start_stop_restart_work_in_any_state() -> None:
    one, _ = worker("sleep:60")
    await one.stop()
    assert state(one) in {"off", "stopped"}
    await one.start()
    await one.start()
    assert await until(lambda: state(one) == "running")
    first = one.status.value.pid
    await one.restart()
    assert await until(lambda: state(one) == "running" and one.status.value.pid != first)
    await one.close()
    assert state(one) == "stopped"


async def test_worker_is_refused_beside_a_simulated_gpu() -> None:
    one, _ = worker("print:x", simulated=True)
    await one.start()
    assert state(one) == "refused"
    assert "WORKER_ALLOW_SIMULATED_GPU=1" in one.status.value.reason
    allowed, _ = worker("exit:0", simulated=True, WORKER_ALLOW_SIMULATED_GPU="1")
    await allowed.start()
    assert await until(lambda: state(allowed) == "exited")
    await one.close()
    await allowed.close()


async def test_missing_command_fails_with_a_sentence() -> None:
    one, _ = worker(WORKER_COMMAND="no-such-program-here --x")
    await one.start()
    assert await until(lambda: state(one) == "failed")
    assert "no-such-program-here" in one.status.value.reason
    await one.close()


async def test_worker_sees_an_allow_list_and_no_secret() -> None:
    secrets = {
        "NOVITA_API_KEY": "sk_secret_000",
        "APPLIANCE_API_KEYS": "key-secret-000",
        "CONTROL_TOKEN": "token-secret",
        "CODE": "code-secret",
    }
    one, lines = worker("env", "exit:0", EXTRA="1", OTHER="2", WORKER_ENV="EXTRA", GPU_MODE="none", **secrets)
    await one.start()
    assert await until(lambda: state(one) == "exited")
    seen = json.loads(lines.tail(1)[0].text)
    assert seen["EXTRA"] == "1"
    assert seen["GPU_MODE"] == "none"
    assert not set(seen) & {*secrets, "OTHER"}
    await one.close()


async def test_huge_and_binary_lines_are_cut_not_fatal() -> None:
    one, lines = worker("huge", "print:after", "exit:0")
    await one.start()
    assert await until(lambda: state(one) == "exited")
    assert [line.text for line in lines.tail(2)] == ["after", f"[{200_002 - 8192} bytes of output left out]"]
    assert max(len(line.text) for line in lines.tail(50)) <= 8193
    await one.close()


async def test_registration_code_is_hidden_everywhere() -> None:
    one, lines = worker("print:registered-code-424242", "exit:0", CODE="code-424242")
    await one.start()
    assert await until(lambda: state(one) == "exited")
    assert "424242" not in str([line.text for line in lines.tail(9)])
    kuzco = HostSettings.from_env({"WORKER": "kuzco", "CODE": "code-424242"})
    assert build_command(kuzco) == ["inference", "node", "start", "--code", "code-424242"]
    shown = Worker(
        kuzco, environ={}, is_gpu_simulated=False, is_ready=ready, lines=lines, clock=SystemClock()
    )
    assert (
        shown.status.value.command == "inference node start --code '[code]'"
        or "[code]" in shown.status.value.command
    )
    assert "424242" not in shown.status.value.command
    await one.close()


@pytest.mark.parametrize(
    ("variables", "name"),
    [
        ({"WORKER": "kuzco"}, "CODE"),
        ({"WORKER": "kuzco", "CODE": "x1", "WORKER_COMMAND": "y"}, "WORKER_COMMAND"),
        ({"WORKER_ENV": "NOVITA_API_KEY"}, "WORKER_ENV"),
        ({"WORKER": "other"}, "WORKER"),
    ],
)
def test_contradicting_settings_are_refused(variables: dict[str, str], name: str) -> None:
    with pytest.raises(InvalidSettings) as caught:
        HostSettings.from_env(variables)
    assert [p.variable for p in caught.value.problems] == [name]


def test_environment_of_the_worker_has_no_secrets() -> None:
    given = build_environment(
        HostSettings.from_env({}), {"PATH": "/bin", "NOVITA_API_KEY": "x", "LC_ALL": "C"}
    )
    assert given == {"PATH": "/bin", "LC_ALL": "C"}


@pytest.mark.parametrize(
    ("runs", "pauses"),
    [
        ([1, 1, 1, 1], [5.0, 10.0, 20.0, 40.0]),
        ([1, 1, 100, 1], [5.0, 10.0, 5.0, 10.0]),
        ([1] * 8, [5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 300.0, 300.0]),
    ],
)
def test_pauses_grow_and_a_steady_run_resets_them(runs: list[float], pauses: list[float]) -> None:
    decider = RestartPolicy(crash_limit=99)
    assert [decider.next_pause(ran_s=ran_s, jitter=0.5) for ran_s in runs] == pauses


def test_jitter_spreads_by_a_quarter_and_the_cap_ends_it() -> None:
    assert RestartPolicy().next_pause(ran_s=0, jitter=0.0) == 3.75
    assert RestartPolicy().next_pause(ran_s=0, jitter=1.0) == 6.25


@pytest.mark.parametrize(
    ("runs", "gives_up_at"),
    [([1] * 12, 10), ([1] * 9 + [100] + [1] * 12, 19), ([100] * 30, None), ([59] * 12, 10)],
)
def test_crashes_in_a_row_end_restarts_however_long_the_pauses(
    runs: list[float], gives_up_at: int | None
) -> None:
    decider = RestartPolicy()
    pauses = [decider.next_pause(ran_s=ran_s, jitter=0.5) for ran_s in runs]
    assert (pauses.index(None) + 1 if None in pauses else None) == gives_up_at


async def test_stop_while_waiting_for_readiness() -> None:
    async def never() -> bool:
        return False

    one, _ = worker("exit:0", is_ready=never)
    await one.start()
    await asyncio.wait_for(one.stop(), 5)
    assert state(one) == "stopped"
    await one.close()
