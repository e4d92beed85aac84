"""The real ModelManager over fakes.

No process runs, loads end when the test says so, memory is what the test says, time is the test's.

harness = await open_manager("a", "b", places=1)
lease = harness.ask("a"); await harness.loaded("a"); (await lease).release(is_ok=True)
"""

import asyncio
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from appliance.base.clock import FakeClock
from appliance.base.tasks import Tasks
from appliance.models.manager.manager import ModelManager
from appliance.models.manager.waiters import Lease
from appliance.models.runner.failures import LoadFailed
from appliance.models.runner.load_history import LoadHistory
from appliance.models.runner.runner import Runner
from appliance.models.status.views import RAM, DeviceView, ModelView
from appliance.models.table.catalogue import Catalogue, Model
from appliance.models.table.entries import Params, System
from appliance.models.table.gguf import GgufHeader

MIB = 1 << 20
NEED = 500 * MIB  # of each model: min_vram_required
PROMPT_S = 3.0  # what these tests wait for comes at once or never
HEADER = (
    b"GGUF"
    + struct.pack("<IQQ", 3, 0, 1)
    + struct.pack("<Q", 20)
    + b"general.architecture"
    + struct.pack("<IQ", 8, 5)
    + b"llama"
)


class InlineExecutor(ThreadPoolExecutor):
    """Does the work of threads (looks at files) at once, so that `settle` is enough for it."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> "Future[Any]":
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:  # as a thread of the pool would keep it
            future.set_exception(error)
        return future


async def settle(turns: int = 30) -> None:
    """Let everything run that can run now."""
    for _ in range(turns):
        await asyncio.sleep(0)


async def until(is_so: Callable[[], object]) -> None:
    """Wait for the work of threads (a file check, the end of a log)."""
    async with asyncio.timeout(PROMPT_S):
        while not is_so():
            await asyncio.sleep(0.002)
    await settle()


class FakeProcess:
    """A process that never existed."""

    def __init__(self, log_path: Path) -> None:
        self.pid = 0
        self.exited = asyncio.Event()
        self.exit_code: int | None = None
        self.is_listening = True
        self.answers_well = True
        self.log_path = log_path
        self.tail: list[str] = []

    def end(self, code: int) -> None:
        self.exit_code = code
        self.exited.set()

    def log_tail(self, lines: int = 20) -> list[str]:
        return self.tail[-lines:]

    async def is_healthy(self, timeout_s: float = 2.0) -> bool:
        return self.answers_well

    def trim_log(self) -> None:
        """It writes none."""


class FakeRecords:
    def end_orphans(self) -> list[dict[str, Any]]:
        return []


class FakeLoader:
    """Loads end when the test says so, by `ready` or `fail`.

    `stops_at_once` False: so do stops, by `stopped`.
    """

    def __init__(self) -> None:
        self.records = FakeRecords()
        self.begun: list[str] = []  # aliases, in the order of loads
        self.loading: dict[int, tuple[Runner, asyncio.Future[None]]] = {}
        self.running: dict[int, Runner] = {}
        self.ports: dict[int, int] = {}  # port → Runner.serial
        self.engines: list[int] = []  # ports with a real listening server, used by the next loads
        self.stopped: list[str] = []
        self.killed_with: list[int] = []  # requests that each stop found active
        self.cut_off: set[int] = set()  # llama-servers (Runner.serial) that were stopped with requests
        self.stops_at_once = True
        self.may_stop = asyncio.Event()

    async def find_program(self, catalogue: Catalogue) -> None:
        """There is no program to look at."""

    async def load(
        self,
        runner: Runner,
        header: GgufHeader | None,
        catalogue: Catalogue,
        on_progress: Callable[[], None],
    ) -> None:
        self.begun.append(runner.alias)
        runner.port = (
            self.engines.pop(0)
            if self.engines
            else next(port for port in range(9000, 9999) if port not in self.ports)
        )
        self.ports[runner.port] = runner.serial
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        process: Any = FakeProcess(Path(f"/nowhere/{runner.alias}.log"))
        runner.process = process
        try:
            if runner.is_stop_requested:
                raise LoadFailed("it was stopped before it was started")
            self.loading[runner.serial] = (runner, future)
            await future
            if process.exited.is_set():
                raise LoadFailed("it was stopped in the moment when it was ready")
            self.running[runner.serial] = runner
        except BaseException:
            self.free(runner)
            raise
        finally:
            self.loading.pop(runner.serial, None)

    async def stop(self, runner: Runner) -> str:
        self.free(runner)
        found = self.loading.get(runner.serial)
        if found is not None:
            if not found[1].done():
                found[1].set_exception(LoadFailed("it was stopped"))
            runner.process.end(-15)  # type: ignore[union-attr]
            self.stopped.append(runner.alias)
            return "term"
        process: Any = runner.process
        if process is None or process.exited.is_set():
            self.running.pop(runner.serial, None)
            return "exited"
        self.killed_with.append(runner.active)
        if runner.active:
            self.cut_off.add(runner.serial)
        if not self.stops_at_once:
            await self.may_stop.wait()
        self.running.pop(runner.serial, None)
        process.end(-15)
        self.stopped.append(runner.alias)
        return "term"

    def free(self, runner: Runner) -> None:
        if self.ports.get(runner.port) == runner.serial:
            self.ports.pop(runner.port)

    def ready(self, alias: str) -> None:
        """Complete the latest load of a model successfully."""
        next(
            future
            for runner, future in reversed(list(self.loading.values()))
            if runner.alias == alias and not future.done()
        ).set_result(None)

    def fail(self, alias: str, reason: str, *, can_retry: bool) -> None:
        future = next(
            future
            for runner, future in reversed(list(self.loading.values()))
            if runner.alias == alias and not future.done()
        )
        future.set_exception(LoadFailed(reason, can_retry=can_retry))

    def crash(self, alias: str, code: int = -9, tail: str = "") -> None:
        runner = next(
            runner
            for runner in self.running.values()
            if runner.alias == alias and not runner.process.exited.is_set()
        )  # type: ignore[union-attr]
        process: Any = runner.process
        process.tail = [tail] if tail else []
        process.end(code)


class FakeMemory:
    """System memory, or GPUs: each process takes what the manager estimated."""

    def __init__(self, loader: FakeLoader, *, total_bytes: int, devices: tuple[int, ...] = (RAM,)) -> None:
        self._loader, self.total_bytes, self.indices = loader, total_bytes, devices
        self.measured: dict[int, int] = {}  # what `of_process` returns

    @property
    def is_gpu(self) -> bool:
        return self.indices != (RAM,)

    def read(self) -> list[DeviceView]:
        views = []
        for index in self.indices:
            used = sum(runner.memory_by_device.get(index, 0) for runner in self._loader.running.values())
            views.append(
                DeviceView(index, f"device {index}", self.total_bytes, used, self.total_bytes - used)
            )
        return views

    def of_process(self, pid: int) -> dict[int, int]:
        return dict(self.measured)


def model(
    alias: str,
    folder: Path,
    *,
    file: str = "",
    replicas: int = 1,
    pinned: bool = False,
    **params: Any,
) -> Model:
    """Give a model with a file whose header says nothing, so that its estimate is NEED."""
    path = folder / (file or f"{alias}.gguf")
    if not path.exists():
        path.write_bytes(HEADER)
    return Model(alias, path, Params(n_ctx=6144).model_copy(update=params), "table", replicas, pinned)


class ManagerHarness:
    """A manager that is open, and everything around it."""

    def __init__(
        self,
        manager: ModelManager,
        loader: FakeLoader,
        memory: FakeMemory,
        clock: FakeClock,
        tasks: Tasks,
        deaths: list[str],
    ) -> None:
        self.manager, self.loader, self.memory, self.clock, self.tasks, self.deaths = (
            manager,
            loader,
            memory,
            clock,
            tasks,
            deaths,
        )
        self.asked: list[asyncio.Task[Any]] = []

    def ask(self, alias: str, **how: Any) -> "asyncio.Task[Lease]":
        """Ask for a slot, in a task of its own."""
        task = asyncio.create_task(self.manager.lease(alias, **how))
        self.asked.append(task)
        return task

    def load(self, alias: str, **how: Any) -> "asyncio.Task[ModelView]":
        task = asyncio.create_task(self.manager.load(alias, **how))
        self.asked.append(task)
        return task

    async def loaded(self, alias: str) -> None:
        """Wait until it is being loaded, and let that load succeed."""
        await self.loads(alias)
        self.loader.ready(alias)
        await settle()

    async def fails(self, alias: str, reason: str = "no luck", *, can_retry: bool = True) -> None:
        """Wait until it is being loaded, and let that load fail."""
        await self.loads(alias)
        self.loader.fail(alias, reason, can_retry=can_retry)
        await settle()

    async def loads(self, alias: str) -> None:
        await until(
            lambda: any(
                runner.alias == alias and not future.done() for runner, future in self.loader.loading.values()
            )
        )

    async def have(self, *aliases: str) -> None:
        """Load these models."""
        for alias in aliases:
            task = self.load(alias)
            await self.loaded(alias)
            await task

    async def later(self, seconds: float) -> None:
        """Let time go by."""
        self.clock.advance(seconds)
        self.manager.reschedule()
        await settle()

    def status(self, alias: str) -> str:
        return self.manager.model(alias).status

    def statuses(self) -> dict[str, str]:
        return {view.alias: view.status for view in self.manager.models()}


Make = Callable[..., Awaitable[ManagerHarness]]


@pytest.fixture
async def open_manager(tmp_path: Path) -> AsyncIterator[Make]:
    """Open managers:

    `await open_manager("a", "b", places=3, slots=2, memory_mib=100_000, gpus=(), models=[…], path=None,
    **system)`.
    """
    harnesses: list[ManagerHarness] = []
    asyncio.get_running_loop().set_default_executor(InlineExecutor(1))

    async def make(
        *aliases: str,
        models: list[Model] | None = None,
        places: int = 3,
        slots: int = 2,
        memory_mib: int = 100_000,
        gpus: tuple[int, ...] = (),
        history: LoadHistory | None = None,
        extra_wait_s: float = 30.0,
        **system: Any,
    ) -> ManagerHarness:
        how = System().model_copy(
            update={
                "max_concurrent_models": places,
                "parallel_requests": slots,
                "preload_delay_sec": 0,
                **system,
            }
        )
        table = {one.alias: one for one in models or [model(alias, tmp_path) for alias in aliases]}
        loader, clock, deaths = FakeLoader(), FakeClock(), list[str]()
        memory = FakeMemory(loader, total_bytes=memory_mib * MIB, devices=gpus or (RAM,))
        tasks = Tasks(on_death=lambda name, error: deaths.append(f"{name}: {error!r}"))
        fake: Any = loader
        manager = ModelManager(
            Catalogue(table, how),
            loader=fake,
            memory=memory,
            history=history or LoadHistory(None),
            tasks=tasks,
            clock=clock,
            extra_wait_s=extra_wait_s,
        )
        harness = ManagerHarness(manager, loader, memory, clock, tasks, deaths)
        harnesses.append(harness)
        await manager.open()
        return harness

    yield make
    for harness in harnesses:
        for task in harness.asked:
            task.cancel()
        await asyncio.gather(*harness.asked, return_exceptions=True)
        harness.loader.may_stop.set()
        await harness.manager.close()
        await harness.tasks.close()
        assert harness.deaths == [], "a background task died"
