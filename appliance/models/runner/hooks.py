"""Runs the hooks of models: one command before a load, one after the end of a server.

No shell reads them. Each is a process like an engine's: in a session of its own, with the same reduced
environment, its output in a log, ended with its group at its time limit, and found after the appliance was
killed.
"""

import asyncio
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from appliance.base.logs import get_logger
from appliance.base.tasks import Tasks
from appliance.base.wire.pool import ConnectionPool
from appliance.models.runner.failures import NOT_STARTED, LoadFailed, exit_text
from appliance.models.runner.log_file import log_name
from appliance.models.runner.orphans import Records
from appliance.models.runner.proc import MARK
from appliance.models.runner.process import Process, StopTimes
from appliance.models.runner.runner import Runner
from appliance.models.table.engine import InvalidReference, fill_words

log = get_logger("models")
HookName = Literal["before_load", "after_unload"]
STOP_TIMES = StopTimes(2.0, 2.0)
SHOWN_LINES, SHOWN_CHARS = 5, 500  # of the output, in an error


class HookRunner:
    """Runs hooks; those of one model never at the same time.

    Args:
        log_dir: Where their output is written.
        records: Where started processes are noted.
        tasks: Runs the tasks that watch a process.
        wire: As engines have it.
    """

    def __init__(self, *, log_dir: Path, records: Records, tasks: Tasks, wire: ConnectionPool) -> None:
        self._log_dir = log_dir
        self._records = records
        self._tasks = tasks
        self._wire = wire
        self._locks: dict[str, asyncio.Lock] = {}

    async def before_load(self, runner: Runner, environ: Mapping[str, str]) -> None:
        """Run a model's `before_load`, if it has one.

        Raises:
            LoadFailed: It cannot be run, failed, took too long, or was stopped.
        """
        words = runner.model.hooks.before_load
        if words:
            await self._run("before_load", words, runner, environ)

    async def after_unload(self, runner: Runner, environ: Mapping[str, str]) -> None:
        """Run a model's `after_unload`; a failure is only logged."""
        try:
            await self._run("after_unload", runner.model.hooks.after_unload, runner, environ)
        except LoadFailed as exc:
            log.warning("hook_failed", alias=runner.alias, hook="after_unload", reason=exc.reason)
        except Exception as exc:  # an internal fault must not keep the memory taken
            log.exception("hook_error", alias=runner.alias, reason=repr(exc))

    async def _run(
        self, name: HookName, words: tuple[str, ...], runner: Runner, environ: Mapping[str, str]
    ) -> None:
        mark = secrets.token_hex(16)
        whole = {**environ, "MODEL": runner.alias, MARK: mark}
        try:
            command = fill_words(
                words, port=runner.port or None, alias=runner.alias, path=runner.model.path, environ=whole
            )
        except InvalidReference as exc:
            raise LoadFailed(f"{name}: {exc}", can_retry=False) from None
        process = Process(
            command,
            port=runner.port,
            log_path=self._log_dir / log_name(runner.alias, name),
            environ=whole,
            tasks=self._tasks,
            wire=self._wire,
            ends_children=False,  # what it leaves behind when it succeeds is meant to stay, as a mounted disk
        )
        async with self._locks.setdefault(runner.alias, asyncio.Lock()):
            if name == "before_load":
                if runner.is_stop_requested:
                    raise LoadFailed("it was stopped before it was started")
                runner.before_load = process
            try:
                await self._run_process(name, process, runner, mark)
            finally:
                runner.before_load = None

    async def _run_process(self, name: HookName, process: Process, runner: Runner, mark: str) -> None:
        timeout_s = runner.model.hooks.timeout_s
        is_late = False
        try:
            await process.start()
            self._records.add(process.pid, port=runner.port, alias=runner.alias, command=[name], mark=mark)
            if name == "before_load" and runner.is_stop_requested:
                raise LoadFailed("it was stopped while it was started")
            async with asyncio.timeout(timeout_s):
                await process.exited.wait()
        except TimeoutError:
            is_late = True
        finally:
            if process.pid:
                await process.stop(STOP_TIMES)
                if is_late or process.exit_code != 0:
                    await process.end_children()
                self._records.remove(process.pid)
        if not is_late and process.exit_code == 0:
            log.info("hook_done", alias=runner.alias, hook=name)
            return
        code = process.exit_code or 0
        how = f"did not end within {timeout_s} s (hook_timeout_sec)" if is_late else exit_text(code)
        tail = await asyncio.to_thread(process.log_tail, SHOWN_LINES)
        said = "; ".join(line.strip() for line in tail if line.strip())[-SHOWN_CHARS:]
        program = Path(process.command[0]).name
        raise LoadFailed(
            f"{name} ({program}) {how}" + (f": {said}" if said else ""),
            can_retry=is_late or code not in NOT_STARTED,
        )
