"""How one llama-server comes to be ready: its port, its command line, its process, its record; and how it goes again."""

import asyncio
import os
import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from appliance.base.logs import get_logger
from appliance.base.tasks import Tasks
from appliance.base.wire.pool import ConnectionPool
from appliance.models.manager.state import ModelState, Runner
from appliance.models.runner.orphans import Records
from appliance.models.runner.process import LoadFailed, Process, StopTimes, environment, free_port, log_name
from appliance.models.settings import FIRST_PORT, LAST_PORT
from appliance.models.table.catalogue import Catalogue
from appliance.models.table.command import Flags, build_command

log = get_logger("models")
HELP_S = 20.0
PORTS_TRIED = 5  # somebody else may take a port between our look and the server's


@dataclass(frozen=True, slots=True)
class Program:
    """The llama-server of this machine. `problem`: why it cannot be used, "" = it can."""

    path: str
    flags: Flags
    problem: str = ""


def look_at_program(wanted: str) -> Program:
    """Find a llama-server and ask it what it takes (blocks). It sees as little of our environment as one that runs."""
    nothing = Flags(frozenset(), False)
    path = shutil.which(wanted or "llama-server")
    if path is None:
        return Program(
            wanted, nothing, f"{wanted or 'llama-server'} is no program that is found; set LLAMA_SERVER_PATH"
        )
    try:
        done = subprocess.run(
            [path, "--help"],
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=HELP_S,
            check=False,
            stdin=subprocess.DEVNULL,
            env=environment(os.environ, ()),
        )
    except (OSError, subprocess.TimeoutExpired) as exc:
        return Program(path, nothing, f"`{path} --help` does not work: {exc}")
    flags = Flags.of_help(done.stdout + done.stderr)
    if "--port" not in flags.names:
        return Program(
            path, flags, f"`{path} --help` does not read like a llama-server's (exit code {done.returncode})"
        )
    return Program(path, flags)


@dataclass
class Loader:
    """Starts and stops processes; decides nothing."""

    log_dir: Path
    records: Records
    environ: Mapping[str, str] = field(repr=False)
    tasks: Tasks
    wire: ConnectionPool
    first_port: int = FIRST_PORT
    last_port: int = LAST_PORT
    times: StopTimes = field(default_factory=StopTimes)
    program: Program = field(
        default_factory=lambda: Program("", Flags(frozenset(), False), "it was not looked at yet")
    )
    _ports: dict[int, int] = field(default_factory=dict)  # port → whose it is (Live.serial)
    _looked_for: str = ""
    _looking: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def look(self, catalogue: Catalogue) -> None:
        """Look at the llama-server, unless this one was found well before: one that is missing may have come meanwhile."""
        async with self._looking:
            if self.program.problem or self._looked_for != catalogue.llama_server:
                self._looked_for = catalogue.llama_server
                self.program = await asyncio.to_thread(look_at_program, catalogue.llama_server)

    async def load(
        self, runner: Runner, entry: ModelState, catalogue: Catalogue, on_look: Callable[[], None]
    ) -> None:
        """Bring one up.

        Raises  LoadFailed
        """
        await self.look(catalogue)
        if self.program.problem:
            raise LoadFailed(self.program.problem, can_retry=False)
        tried: set[int] = set()
        while True:
            try:
                return await self._try(runner, entry, catalogue, on_look, tried)
            except LoadFailed as exc:
                if not exc.is_port:
                    raise
                log.warning("port_taken", alias=runner.alias, port=runner.port)
                tried.add(runner.port)
                if len(tried) == PORTS_TRIED:
                    raise LoadFailed(
                        f"each of {PORTS_TRIED} ports was taken by somebody else, the last was {runner.port}"
                    ) from None

    async def _try(
        self,
        runner: Runner,
        entry: ModelState,
        catalogue: Catalogue,
        on_look: Callable[[], None],
        tried: set[int],
    ) -> None:
        runner.port = port = free_port({*self._ports, *tried}, self.first_port, self.last_port)
        self._ports[port] = runner.serial
        try:
            command = build_command(
                self.program.path,
                runner.model,
                catalogue.system,
                self.program.flags,
                port=port,
                header=entry.header,
            )
        except ValueError as exc:
            self._ports.pop(port)
            raise LoadFailed(str(exc), can_retry=False) from None
        process = runner.process = Process(
            command,
            port=port,
            log_path=self.log_dir / log_name(runner.alias, port),
            tasks=self.tasks,
            wire=self.wire,
            environ=environment(
                self.environ, runner.devices, hides_gpus=runner.model.params.n_gpu_layers == 0
            ),
        )
        is_well = False
        try:
            if runner.is_stop_requested:
                raise LoadFailed("it was told to go before it was started")
            await process.start()
            self.records.add(process.pid, port=port, alias=runner.alias, command=command)
            if runner.is_stop_requested:
                raise LoadFailed("it was told to go while it was started")
            await process.ready(float(catalogue.system.wait_ready_sec), on_look)
            is_well = True
        finally:
            if not is_well:
                await self.stop(runner)

    async def stop(self, runner: Runner) -> str:
        """End its process; give how, see Process.stop. Its port and its record are free after that."""
        process = runner.process
        how = await process.stop(self.times) if process is not None else "ended"
        if how != "stuck":
            if (
                self._ports.get(runner.port) == runner.serial
            ):  # a second stop must not free what is another's by now
                self._ports.pop(runner.port)
            if process is not None and process.pid:
                self.records.remove(process.pid)
        else:
            log.error("runner_stuck", alias=runner.alias, pid=process.pid if process else 0, port=runner.port)
        return how
