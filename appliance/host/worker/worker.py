"""The third-party CLI inside the container: started once we answer, watched, started again, ended with all its children.

Its environment is an allow-list; the hosted key and every other secret of ours stay out of it. It never runs beside a
simulated GPU unless its operator says that its network accepts one.
"""

import asyncio
import os
import random
import shlex
import shutil
import signal
import sys
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from appliance.base import jsons
from appliance.base.clock import Clock
from appliance.base.log_buffer import LogBuffer
from appliance.base.logs import SECRETS, get_logger
from appliance.base.metrics.registry import Metrics
from appliance.base.tasks import Tasks
from appliance.base.watch import Watched
from appliance.host.settings import KUZCO_COMMAND, HostSettings
from appliance.host.worker.output import tell_output
from appliance.host.worker.restarts import RestartPolicy

log = get_logger("worker")
PASSED = {
    "PATH",
    "HOME",
    "LANG",
    "LANGUAGE",
    "TZ",
    "TERM",
    "HOSTNAME",
    "TMPDIR",
    "USER",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "STATE_DIR",
    "GPU_MODE",
    "NVIDIA_VISIBLE_DEVICES",
    "CUDA_VISIBLE_DEVICES",
    "LD_LIBRARY_PATH",
}
PASSED_PREFIXES = ("LC_", "GPU_SPOOF_", "GPU_SIM_")
READY_EVERY_S = 0.25
KILLED_S = 5.0
GUARD = Path(__file__).with_name("guard.py")
REFUSAL = (
    "The GPU that nvidia-smi reports here is simulated, and a worker's network must not take it for a real one: the worker is not "
    "started. If its network accepts simulated GPUs, set WORKER_ALLOW_SIMULATED_GPU=1."
)


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """What the worker is doing.

    state   off | waiting (for our own health) | running | backing_off | stopping | stopped | exited | failed | refused
    command is shown with the code hidden; exit_code is None while none is known, negative for the number of a signal
    """

    state: str = "off"
    command: str = ""
    pid: int | None = None
    restarts: int = 0
    exit_code: int | None = None
    started_at_s: float | None = None
    reason: str = ""


def command_of(settings: HostSettings) -> list[str]:
    """Give the command line as words; [] when no worker is wanted."""
    if settings.worker == "kuzco":
        return [word.format(code=settings.code.get_secret_value()) for word in shlex.split(KUZCO_COMMAND)]
    return shlex.split(settings.worker_command)


def environment_for(settings: HostSettings, environ: Mapping[str, str]) -> dict[str, str]:
    """Give the worker's environment: an allow-list, WORKER_ENV's names, and never a secret of ours."""
    wanted = {name.strip() for name in settings.worker_env.split(",") if name.strip()}
    return {
        name: value
        for name, value in environ.items()
        if name in wanted or name in PASSED or name.startswith(PASSED_PREFIXES)
    }


class Worker:
    """Supervises one process. start, stop and restart may be called in any state, and take their turns."""

    def __init__(
        self,
        settings: HostSettings,
        *,
        environ: Mapping[str, str],
        is_gpu_simulated: bool,
        is_ready: Callable[[], Awaitable[bool]],
        lines: LogBuffer,
        clock: Clock,
        metrics: Metrics | None = None,
        restarts: RestartPolicy | None = None,
    ) -> None:
        self._settings = settings
        self._environ = environ
        self._is_gpu_simulated = is_gpu_simulated
        self._is_ready = is_ready
        self._lines = lines
        self._clock = clock
        self._metrics = metrics
        self._restarts = restarts or RestartPolicy(
            first_s=settings.worker_restart_min_s,
            longest_s=settings.worker_restart_max_s,
            crash_limit=settings.worker_crash_limit,
        )
        self._command = command_of(settings)
        SECRETS.learn([settings.code.get_secret_value()])
        shown = shlex.join(self._command)
        code = settings.code.get_secret_value()
        self._shown = shown.replace(code, "[code]") if code else shown
        self.status: Watched[WorkerStatus] = Watched(WorkerStatus(command=self._shown))
        self._tasks = Tasks()
        self._run: asyncio.Task[None] | None = None
        self._turn = asyncio.Lock()

    def as_dict(self) -> dict[str, Any]:
        return asdict(self.status.value)

    def _set(self, **changes: Any) -> None:
        self.status.set(replace(self.status.value, **changes))
        if self._metrics is not None:
            self._metrics.worker_up.set(1 if self.status.value.state == "running" else 0)

    async def start(self) -> WorkerStatus:
        """Start the worker, unless there is none, it runs, or it is refused; give the state that this leads to."""
        async with self._turn:
            if not self._command or (self._run is not None and not self._run.done()):
                return self.status.value
            if self._is_gpu_simulated and not self._settings.worker_allow_simulated_gpu:
                self._set(state="refused", reason=REFUSAL)
                log.error("worker_refused", reason=REFUSAL)
                return self.status.value
            self._restarts.reset()
            self._set(state="waiting", reason="waiting until /healthz answers", exit_code=None)
            self._run = self._tasks.start(self._supervise(), name="worker")
            return self.status.value

    async def stop(self) -> WorkerStatus:
        """End the worker and all its children: SIGTERM to each, SIGKILL after WORKER_STOP_GRACE_S."""
        # The end goes on when whoever asked for it has gone: a worker that is half ended is nobody's.
        return await asyncio.shield(self._tasks.start(self._stop(), name="worker-stop"))

    async def _stop(self) -> WorkerStatus:
        async with self._turn:
            if self._run is None or self._run.done():
                if self.status.value.state not in {"off", "refused"} and self._command:
                    self._set(state="stopped", reason="stopped by request")
                return self.status.value
            self._set(state="stopping", reason="asked to stop")
            self._run.cancel()
            await asyncio.gather(self._run, return_exceptions=True)
            self._run = None
            self._set(state="stopped", pid=None, reason="stopped by request")
            return self.status.value

    async def restart(self) -> WorkerStatus:
        """Stop it and start it; the start follows also when whoever asked has gone."""
        return await asyncio.shield(self._tasks.start(self._restart(), name="worker-restart"))

    async def _restart(self) -> WorkerStatus:
        await self._stop()
        return await self.start()

    async def close(self) -> None:
        await self.stop()
        await self._tasks.close()

    # ---- one run after another

    async def _supervise(self) -> None:
        while not await self._is_ready():
            await asyncio.sleep(READY_EVERY_S)
        while True:
            began_s = self._clock.monotonic_s()
            code = await self._run_once()
            if code is None:
                return
            reason = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
            log.warning("worker_ended", exit_code=code, reason=reason)
            if not self._settings.keepalive:
                self._set(state="exited", pid=None, exit_code=code, reason=f"{reason}; KEEPALIVE=0")
                return
            pause_s = self._restarts.next_pause(
                ran_s=self._clock.monotonic_s() - began_s, jitter=random.random()
            )
            if pause_s is None:
                self._set(
                    state="failed",
                    pid=None,
                    exit_code=code,
                    reason=f"{reason}; it ended {self._restarts.crash_limit} times in a row, each in less than "
                    f"{self._restarts.steady_s:.0f} s, and is not started again",
                )
                log.error("worker_failed", reason=self.status.value.reason)
                return
            self._set(
                state="backing_off",
                pid=None,
                exit_code=code,
                reason=f"{reason}; the next start in {pause_s:.1f} s",
            )
            await asyncio.sleep(pause_s)
            self._set(restarts=self.status.value.restarts + 1)
            if self._metrics is not None:
                self._metrics.worker_restarts.inc()

    async def _run_once(self) -> int | None:
        """Run the process to its end and give its code; None when it cannot be started at all."""
        environment = environment_for(self._settings, self._environ)
        program = shutil.which(self._command[0], path=environment.get("PATH", os.defpath))
        if program is None:
            self._set(
                state="failed",
                reason=f"the command {self._command[0]!r} is not there; add the worker CLI to the image",
            )
            log.error("worker_failed", reason=self.status.value.reason)
            return None
        try:
            process, report = await _start_guard([program, *self._command[1:]], environment)
        except OSError as exc:
            self._cannot_start(exc.strerror or str(exc))
            return None
        readers = [
            self._tasks.start(
                tell_output(stream, partial(self._tell, name), self._clock.monotonic_s), name=f"worker-{name}"
            )
            for stream, name in ((process.stdout, "stdout"), (process.stderr, "stderr"))
            if stream is not None
        ]
        try:
            pid, _, why = (await report.read()).decode().partition(" ")
            if not why:
                self._set(
                    state="running",
                    pid=int(pid) if pid else None,
                    started_at_s=self._clock.now_s(),
                    reason="",
                )
                log.info("worker_started", pid=pid, command=self._shown)
            code = await process.wait()
        except asyncio.CancelledError:
            await asyncio.shield(self._end(process))
            raise
        finally:
            await asyncio.wait(readers, timeout=2)
            for reader in readers:
                reader.cancel()
        if why:
            self._cannot_start(why)
            return None
        return code

    def _cannot_start(self, why: str) -> None:
        self._set(state="failed", reason=f"{self._command[0]!r} cannot be started: {why}")
        log.error("worker_failed", reason=self.status.value.reason)

    async def _end(self, process: asyncio.subprocess.Process) -> None:
        """Ask all of it to end; then have all of it killed, see guard.py."""
        _signal(process.pid, signal.SIGTERM)
        try:
            await asyncio.wait_for(process.wait(), self._settings.worker_stop_grace_s)
        except TimeoutError:
            _signal(process.pid, signal.SIGUSR1)
            try:
                await asyncio.wait_for(process.wait(), KILLED_S)
            except TimeoutError:  # the guard itself was stopped: its end ends what it started
                _signal(process.pid, signal.SIGKILL)
                await process.wait()
        self._set(exit_code=process.returncode)

    def _tell(self, name: str, text: str) -> None:
        text = SECRETS.redact(text)
        self._lines.add(self._clock.now_s(), f"worker.{name}", text)
        try:
            log.info("worker_output", stream=name, text=text)
        except (
            OSError,
            ValueError,
        ):  # our own log cannot be written: no reason to stop the worker by not reading it
            pass


async def _start_guard(
    command: list[str], environment: dict[str, str]
) -> tuple[asyncio.subprocess.Process, asyncio.StreamReader]:
    """Start the guard, and have it start the worker; give the guard and what it reports (see guard.py).

    Raises  OSError
    """
    reading, writing = os.pipe()
    report = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(report), os.fdopen(reading, "rb", 0))
    try:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-I",
            "-S",
            str(GUARD),
            env=environment,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
            pass_fds=(writing,),
        )
    finally:
        os.close(writing)
    assert process.stdin is not None
    process.stdin.write(jsons.dumps({"command": command, "parent": os.getpid(), "report": writing}))
    process.stdin.close()
    return process, report


def _signal(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass
