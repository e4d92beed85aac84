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
from appliance.base.wire import Wire
from appliance.models.catalogue import Catalogue
from appliance.models.command import Flags, command_line
from appliance.models.entry import Entry, Live
from appliance.models.orphans import Records
from appliance.models.process import LoadFailed, Process, StopTimes, environment, free_port, log_name
from appliance.models.settings import FIRST_PORT, LAST_PORT

log = get_logger("models")
HELP_S = 20.0
PORTS_TRIED = 5         # somebody else may take a port between our look and the server's


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
        return Program(wanted, nothing, f"{wanted or 'llama-server'} is no program that is found; set LLAMA_SERVER_PATH")
    try:
        done = subprocess.run([path, "--help"], capture_output=True, encoding="utf-8", errors="replace", timeout=HELP_S, check=False,
                              stdin=subprocess.DEVNULL, env=environment(os.environ, ()))
    except (OSError, subprocess.TimeoutExpired) as exc:
        return Program(path, nothing, f"`{path} --help` does not work: {exc}")
    flags = Flags.of_help(done.stdout + done.stderr)
    if "--port" not in flags.names:
        return Program(path, flags, f"`{path} --help` does not read like a llama-server's (exit code {done.returncode})")
    return Program(path, flags)


@dataclass
class Loader:
    """Starts and stops processes; decides nothing."""

    log_dir: Path
    records: Records
    environ: Mapping[str, str] = field(repr=False)
    tasks: Tasks
    wire: Wire
    first_port: int = FIRST_PORT
    last_port: int = LAST_PORT
    times: StopTimes = field(default_factory=StopTimes)
    program: Program = field(default_factory=lambda: Program("", Flags(frozenset(), False), "it was not looked at yet"))
    _ports: dict[int, int] = field(default_factory=dict)        # port → whose it is (Live.serial)
    _looked_for: str = ""
    _looking: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def look(self, catalogue: Catalogue) -> None:
        """Look at the llama-server, unless this one was found well before: one that is missing may have come meanwhile."""
        async with self._looking:
            if self.program.problem or self._looked_for != catalogue.llama_server:
                self._looked_for = catalogue.llama_server
                self.program = await asyncio.to_thread(look_at_program, catalogue.llama_server)

    async def load(self, live: Live, entry: Entry, catalogue: Catalogue, on_look: Callable[[], None]) -> None:
        """Bring one up.

        Raises  LoadFailed
        """
        await self.look(catalogue)
        if self.program.problem:
            raise LoadFailed(self.program.problem, can_retry=False)
        tried: set[int] = set()
        while True:
            try:
                return await self._try(live, entry, catalogue, on_look, tried)
            except LoadFailed as exc:
                if not exc.is_port:
                    raise
                log.warning("port_taken", alias=live.alias, port=live.port)
                tried.add(live.port)
                if len(tried) == PORTS_TRIED:
                    raise LoadFailed(f"each of {PORTS_TRIED} ports was taken by somebody else, the last was {live.port}") from None

    async def _try(self, live: Live, entry: Entry, catalogue: Catalogue, on_look: Callable[[], None], tried: set[int]) -> None:
        live.port = port = free_port({*self._ports, *tried}, self.first_port, self.last_port)
        self._ports[port] = live.serial
        try:
            command = command_line(self.program.path, live.model, catalogue.system, self.program.flags, port=port, header=entry.header)
        except ValueError as exc:
            self._ports.pop(port)
            raise LoadFailed(str(exc), can_retry=False) from None
        process = live.process = Process(
            command, port=port, log_path=self.log_dir / log_name(live.alias, port), tasks=self.tasks, wire=self.wire,
            environ=environment(self.environ, live.devices, hides_gpus=live.model.params.n_gpu_layers == 0))
        is_well = False
        try:
            if live.is_told_to_go:
                raise LoadFailed("it was told to go before it was started")
            await process.start()
            self.records.add(process.pid, port=port, alias=live.alias, command=command)
            if live.is_told_to_go:
                raise LoadFailed("it was told to go while it was started")
            await process.ready(float(catalogue.system.wait_ready_sec), on_look)
            is_well = True
        finally:
            if not is_well:
                await self.stop(live)

    async def stop(self, live: Live) -> str:
        """End its process; give how, see Process.stop. Its port and its record are free after that."""
        process = live.process
        how = await process.stop(self.times) if process is not None else "ended"
        if how != "stuck":
            if self._ports.get(live.port) == live.serial:       # a second stop must not free what is another's by now
                self._ports.pop(live.port)
            if process is not None and process.pid:
                self.records.remove(process.pid)
        else:
            log.error("runner_stuck", alias=live.alias, pid=process.pid if process else 0, port=live.port)
        return how
