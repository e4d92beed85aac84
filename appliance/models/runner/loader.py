"""Starts and stops an engine: its port, its command line, its process, its record."""

import asyncio
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path

from appliance.base.logs import get_logger
from appliance.base.tasks import Tasks
from appliance.base.wire.pool import ConnectionPool
from appliance.models.runner.failures import LoadFailed
from appliance.models.runner.hooks import STOP_TIMES as HOOK_STOP_TIMES
from appliance.models.runner.hooks import HookRunner
from appliance.models.runner.log_file import log_name
from appliance.models.runner.orphans import Records
from appliance.models.runner.ports import find_free_port
from appliance.models.runner.proc import MARK
from appliance.models.runner.process import (
    LLAMA_SERVER,
    Process,
    ReadyRule,
    StopOutcome,
    StopTimes,
    environment,
)
from appliance.models.runner.program import NO_FLAGS, Program, find_program
from appliance.models.runner.runner import Runner
from appliance.models.settings import FIRST_PORT, LAST_PORT
from appliance.models.table.catalogue import Catalogue
from appliance.models.table.command import InvalidCommand, build_command
from appliance.models.table.engine import EngineCommand, InvalidReference, fill_words
from appliance.models.table.gguf import GgufHeader

log = get_logger("models")
PORTS_TRIED = 5  # another program may take a port between our check and llama-server's start


class Loader:
    """Starts and stops processes; makes no decisions.

    Args:
        log_dir: Where the logs of llama-servers are written.
        records: Where started processes are noted.
        environ: The environment, of which llama-servers get a part.
        tasks: Runs the tasks that watch a process.
        wire: Connections for health probes.
        first_port, last_port: The range of their ports.
        times: How long a process gets to exit.
    """

    def __init__(
        self,
        *,
        log_dir: Path,
        records: Records,
        environ: Mapping[str, str],
        tasks: Tasks,
        wire: ConnectionPool,
        first_port: int = FIRST_PORT,
        last_port: int = LAST_PORT,
        times: StopTimes | None = None,
    ) -> None:
        self.log_dir = log_dir
        self.records = records
        self.first_port, self.last_port = first_port, last_port
        self.times = times or StopTimes()
        self.program = Program("", NO_FLAGS, "llama-server was not searched for yet")
        self._environ = environ
        self._tasks = tasks
        self._wire = wire
        self._hooks = HookRunner(log_dir=log_dir, records=records, tasks=tasks, wire=wire)
        self._loading: set[int] = set()  # serials
        self._ports: dict[int, int] = {}  # port → serial of its llama-server
        self._searched_for = ""
        self._finding = asyncio.Lock()

    async def find_program(self, catalogue: Catalogue) -> None:
        """Find the table's llama-server, unless it was found before.

        A missing one is searched for each time: it may have been installed meanwhile.
        """
        async with self._finding:
            if self.program.problem or self._searched_for != catalogue.llama_server:
                self._searched_for = catalogue.llama_server
                self.program = await asyncio.to_thread(find_program, catalogue.llama_server)

    async def load(
        self,
        runner: Runner,
        header: GgufHeader | None,
        catalogue: Catalogue,
        on_progress: Callable[[], None],
    ) -> None:
        """Start an engine and wait until it is ready; before that, run the model's hook.

        Args:
            runner: The engine to start; its port and process are set.
            header: Of the model's file.
            catalogue: The table.
            on_progress: Called repeatedly until it is ready.

        Raises:
            LoadFailed: It did not become ready; its process has exited.
        """
        is_ready = False
        self._loading.add(runner.serial)
        try:
            await self._hooks.before_load(runner, self._environ_of(runner, ""))
            runner.needs_after_unload = bool(runner.model.hooks.after_unload)
            await self._load_on_free_port(runner, header, catalogue, on_progress)
            is_ready = runner.process is not None and runner.process.is_running
        finally:
            self._loading.discard(runner.serial)
            if not is_ready:
                await self._after_unload(runner)

    async def _load_on_free_port(
        self,
        runner: Runner,
        header: GgufHeader | None,
        catalogue: Catalogue,
        on_progress: Callable[[], None],
    ) -> None:
        if runner.model.engine is None:
            await self.find_program(catalogue)
            if self.program.problem:
                raise LoadFailed(self.program.problem, can_retry=False)
        tried: set[int] = set()
        while True:
            runner.port = find_free_port({*self._ports, *tried}, self.first_port, self.last_port)
            try:
                return await self._try(runner, header, catalogue, on_progress)
            except LoadFailed as exc:
                if not exc.is_port:
                    raise
                log.warning("port_taken", alias=runner.alias, port=runner.port)
                tried.add(runner.port)
                if len(tried) == PORTS_TRIED:
                    raise LoadFailed(
                        f"another program took each of {PORTS_TRIED} ports, the last was {runner.port}"
                    ) from None

    async def _try(
        self,
        runner: Runner,
        header: GgufHeader | None,
        catalogue: Catalogue,
        on_progress: Callable[[], None],
    ) -> None:
        """Start it on its port."""
        self._ports[runner.port] = runner.serial
        engine = runner.model.engine
        mark = secrets.token_hex(16) if engine is not None else ""
        environ = self._environ_of(runner, mark)
        try:
            command = self._command(runner, header, catalogue, environ)
        except (InvalidCommand, InvalidReference) as exc:
            self._ports.pop(runner.port)
            raise LoadFailed(str(exc), can_retry=False) from None
        limit_s = float(catalogue.system.wait_ready_sec)
        if engine is not None and engine.ready_timeout_s is not None:
            limit_s = engine.ready_timeout_s
        process = runner.process = Process(
            command,
            port=runner.port,
            log_path=self.log_dir / log_name(runner.alias, runner.port),
            tasks=self._tasks,
            wire=self._wire,
            environ=environ,
            rule=ready_rule(engine, command) if engine is not None else LLAMA_SERVER,
        )
        is_ready = False
        try:
            if runner.is_stop_requested:
                raise LoadFailed("it was stopped before it was started")
            await process.start()
            # With a mark the words are not needed, and there may be secrets among them.
            noted = command if engine is None else [engine.words[0]]
            self.records.add(process.pid, port=runner.port, alias=runner.alias, command=noted, mark=mark)
            if runner.is_stop_requested:
                raise LoadFailed("it was stopped while it was started")
            await process.wait_ready(limit_s, on_progress)
            is_ready = True
        finally:
            if not is_ready:
                await self._end(runner)

    def _environ_of(self, runner: Runner, mark: str) -> dict[str, str]:
        found = environment(self._environ, runner.devices, hides_gpus=runner.model.params.n_gpu_layers == 0)
        found |= dict(runner.model.env)
        if mark:
            found |= {"PORT": str(runner.port), "MODEL": runner.alias, MARK: mark}
        return found

    def _command(
        self, runner: Runner, header: GgufHeader | None, catalogue: Catalogue, environ: Mapping[str, str]
    ) -> list[str]:
        model = runner.model
        if model.engine is not None:
            return fill_words(
                model.engine.words, port=runner.port, alias=model.alias, path=model.path, environ=environ
            )
        return build_command(
            self.program.path,
            model,
            catalogue.system,
            self.program.flags,
            port=runner.port,
            header=header,
        )

    async def stop(self, runner: Runner) -> StopOutcome:
        """End its process (see Process.stop), then run the model's hook.

        Its port and its record are free afterwards.
        """
        if runner.before_load is not None:
            await runner.before_load.stop(HOOK_STOP_TIMES)
        outcome = await self._end(runner)
        if outcome != "stuck" and runner.serial not in self._loading:  # else `load` runs it when it fails
            await self._after_unload(runner)
        return outcome

    async def _after_unload(self, runner: Runner) -> None:
        """Run the hook once; all callers wait for its end."""
        if not runner.needs_after_unload:
            return
        if runner.after_unload is None:
            runner.after_unload = self._tasks.start(
                self._hooks.after_unload(runner, self._environ_of(runner, "")),
                name=f"after-unload-{runner.alias}",
            )
        await asyncio.shield(runner.after_unload)

    async def _end(self, runner: Runner) -> StopOutcome:
        process = runner.process
        outcome: StopOutcome = await process.stop(self.times) if process is not None else "exited"
        if outcome == "stuck":
            log.error("runner_stuck", alias=runner.alias, pid=runner.pid, port=runner.port)
            return outcome
        if self._ports.get(runner.port) == runner.serial:  # else the port has another owner by now
            self._ports.pop(runner.port)
        if runner.pid:
            self.records.remove(runner.pid)
        return outcome


def ready_rule(engine: EngineCommand, command: list[str]) -> ReadyRule:
    """Return when an engine with a command is ready."""
    limit_name = "wait_ready_sec" if engine.ready_timeout_s is None else "ready_timeout_sec"
    return ReadyRule(engine.health_paths, Path(command[0]).name, limit_name, is_llama_server=False)
