"""The life of the manager's llama-servers: begun, watched while they load and while they run, given up, and seen to be gone.

What is done when is decided elsewhere (manager.py); at the end of whatever takes time it is its turn again.
"""

import asyncio
from collections import deque
from collections.abc import Callable

from appliance.base.clock import Clock
from appliance.base.logs import get_logger
from appliance.base.tasks import Tasks
from appliance.base.watch import Watched
from appliance.models.manager.events import ManagerEvents
from appliance.models.manager.model_file import look_at_file
from appliance.models.manager.state import ModelState, Runner
from appliance.models.runner.load_history import LoadHistory
from appliance.models.runner.loader import Loader
from appliance.models.runner.process import LoadFailed, memory_bytes
from appliance.models.runner.system_memory import SystemMemory
from appliance.models.runner.vram import Memory, wait_back
from appliance.models.status.views import (
    KEPT_SAMPLES,
    RAM,
    DeviceView,
    ManagerCounts,
    ModelView,
    RequestSample,
)
from appliance.models.table.catalogue import Catalogue, Model

log = get_logger("models")
BACK_OFF_S = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0)  # of a model after its first, second … failure in a row
CAUTION = 1.05  # of a need that was measured


class RunnerSupervisor:
    """What the manager stands on."""

    def __init__(
        self,
        catalogue: Catalogue,
        *,
        loader: Loader,
        memory: Memory,
        history: LoadHistory,
        tasks: Tasks,
        clock: Clock,
        events: ManagerEvents,
    ) -> None:
        self.catalogue = catalogue
        self.changed: Watched[int] = Watched(0)
        self.model_states: dict[str, ModelState] = {}
        self.samples: deque[RequestSample] = deque(maxlen=KEPT_SAMPLES)
        self.totals = ManagerCounts()
        self.loader, self.memory, self.history = loader, memory, history
        self._events = events
        self._removed_callbacks: list[Callable[[Runner], None]] = []
        self._tasks, self._clock = tasks, clock
        self.clock = clock
        self._serial = 0
        self._lives: dict[int, Runner] = {}  # until they are gone: also of models that the table has no more
        self._devices: list[DeviceView] = []
        self._devices_at_s = -1e9
        self.ram_beside_gpus: list[
            DeviceView
        ] = []  # for models of which no layer lies on a GPU; read together with the GPUs
        self.ram = memory if not memory.is_gpu else SystemMemory()

    def add_removed_callback(self, callback: Callable[[Runner], None]) -> None:
        """Call `callback` for each llama-server that has been removed."""
        self._removed_callbacks.append(callback)

    def _turn(self) -> None:
        """Do what must be done now."""
        raise NotImplementedError

    def model(self, alias: str) -> ModelView:
        raise NotImplementedError

    def runners(self) -> list[Runner]:
        return list(self._lives.values())

    def bump(self, entry: ModelState | None = None) -> None:
        """Tell followers that something changed."""
        if entry is not None:
            entry.updated_at_s = self._clock.now_s()
        self.changed.set(self.changed.value + 1)

    # ---- what is known of a model

    def _is_on_gpu(self, model: Model) -> bool:
        return self.memory.is_gpu and model.params.n_gpu_layers != 0

    def need_bytes(self, entry: ModelState) -> int:
        """Give what loading a model takes: as it was seen, else as its header lets expect."""
        lesson = self.history.of(entry.key)
        if lesson is not None and lesson.memory_bytes:
            return round(lesson.memory_bytes * CAUTION)
        return entry.estimate.total if entry.estimate is not None else 0

    def expected_load_s(self, entry: ModelState) -> float:
        return self.history.expected_load_s(
            entry.key, entry.header.size_bytes if entry.header is not None else 0
        )

    def stays_s(self, runner: Runner, entry: ModelState, now_s: float) -> float | None:
        """Say how much longer an idle one stays.

        1. pinned                             → for ever
        2. a request said how long            → so long
        3. of the models that are kept warm   → for ever
        4. no idle timeout                    → for ever
        5. else                               → idle_timeout_sec
        """
        system = self.catalogue.system
        if entry.is_pinned:  # 1
            return None
        idle_s = 0.0 if runner.active else now_s - runner.idle_since_s
        if runner.keep_alive_s is not None:  # 2
            return None if runner.keep_alive_s < 0 else max(0.0, runner.keep_alive_s - idle_s)
        if not system.enable_idle_timeout or entry.alias in self.warm():  # 3, 4
            return None
        return max(0.0, system.idle_timeout_sec - idle_s)  # 5

    def warm(self) -> set[str]:
        """Name the loaded models that are asked for most, as many as keep_warm_models says."""
        most = self.catalogue.system.keep_warm_models
        if not most:
            return set()
        aliases = dict.fromkeys(runner.alias for runner in self._lives.values() if runner.phase != "stopping")
        loaded = [
            entry for entry in map(self.model_states.get, aliases) if entry is not None and entry.requests
        ]
        return {entry.alias for entry in sorted(loaded, key=lambda entry: -entry.requests)[:most]}

    async def _look_at(self, entry: ModelState) -> None:
        """Look at a model's file."""
        while True:
            model = entry.model
            look = await asyncio.to_thread(look_at_file, model, self.catalogue.system)
            if entry.model is model:
                look.into(entry)
                return

    # ---- loading

    def _start(self, entry: ModelState, devices: tuple[int, ...], now_s: float) -> None:
        self._serial += 1
        runner = Runner(
            self._serial,
            entry.alias,
            entry.model,
            devices,
            entry.slots,
            self.need_bytes(entry),
            now_s,
            self._clock.now_s(),
        )
        runner.idle.set()
        entry.runners.append(runner)
        self._lives[runner.serial] = runner
        entry.loads += 1
        entry.is_owed = False
        self._count(loads=1)
        log.info(
            "model_loads",
            alias=entry.alias,
            devices=devices,
            needs_mb=runner.need_bytes >> 20,
            waiting=len(entry.waiters),
        )
        self.bump(entry)
        self._tasks.start(self._load(runner, entry), name=f"load-{entry.alias}")

    async def _load(self, runner: Runner, entry: ModelState) -> None:
        """Bring one up, and then serve those who wait; or note why it failed."""
        try:
            await self._bring_up(runner, entry)
        finally:
            runner.settled.set()
        if runner.phase == "ready":
            await self._until_it_ends(runner, entry)

    async def _bring_up(self, runner: Runner, entry: ModelState) -> None:
        try:
            if not entry.key:
                await self._look_at(entry)
            if entry.problem:
                raise LoadFailed(entry.problem, can_retry=False)
            await self.loader.load(runner, entry, self.catalogue, lambda: self._looked(runner, entry))
        except LoadFailed as exc:
            self._gave_up(runner, entry, exc)
            return
        except Exception as exc:  # a fault of ours: the others' models are not to suffer for it
            log.exception("load_broke", alias=entry.alias)
            await self.loader.stop(runner)
            self._gave_up(runner, entry, LoadFailed(f"an internal error: {exc!r}"))
            return
        if runner.phase == "loading":
            self._ready(runner, entry)

    def _gave_up(self, runner: Runner, entry: ModelState, failure: LoadFailed) -> None:
        is_stop_requested = runner.is_stop_requested
        self._gone(runner, entry)
        if not is_stop_requested:
            self._failed(entry, failure.reason, can_retry=failure.can_retry)
        self._turn()

    def _looked(self, runner: Runner, entry: ModelState) -> None:
        """Take note of how far a load is: by the memory that it holds already."""
        process = runner.process
        if process is None or not process.pid:
            return
        held, of_files = memory_bytes(process.pid)  # the file's pages go through it, wherever they end
        if RAM in runner.devices:
            runner.memory, runner.file_bytes = {RAM: held}, of_files
        else:
            runner.memory = self.memory.of_process(process.pid)
        progress = min(
            99,
            int(
                100
                * held
                / max(1, entry.header.size_bytes if entry.header is not None else runner.need_bytes)
            ),
        )
        word = "loading" if process.is_listening else "starting"
        if (progress, word) != (runner.progress, runner.word):
            runner.progress, runner.word = max(progress, runner.progress), word  # type: ignore[assignment]
            self.bump(entry)

    def _ready(self, runner: Runner, entry: ModelState) -> None:
        now_s = self._clock.monotonic_s()
        self._looked(runner, entry)  # now it has all that it takes
        runner.phase, runner.progress = "ready", 100
        if (
            not runner.memory
        ):  # the driver does not tell (it may hide processes in a container): the estimate stands
            runner.memory = {device: runner.need_bytes // len(runner.devices) for device in runner.devices}
        self._devices_at_s = -1e9  # the next load is judged by what this one has taken
        runner.ready_since_s = runner.idle_since_s = now_s
        runner.load_s = entry.load_s = now_s - runner.began_s
        entry.wanted, entry.failed, entry.misfires = "", "", 0
        self.history.loaded(
            entry.key,
            seconds=runner.load_s,
            size_bytes=entry.header.size_bytes if entry.header is not None else 0,
        )
        self._count(loaded=1)
        self._events.loaded(entry.alias, runner.load_s)
        log.info(
            "model_ready",
            alias=entry.alias,
            port=runner.port,
            pid=runner.process.pid if runner.process else 0,
            load_s=round(runner.load_s, 3),
        )
        for waiter, _ in list(entry.waiters.values()):
            if waiter.is_load:
                entry.waiters.pop(id(waiter), None)
                runner.keep_alive_s = (
                    waiter.keep_alive_s if waiter.keep_alive_s is not None else runner.keep_alive_s
                )
                if waiter.view is not None and not waiter.view.done():
                    waiter.view.set_result(self.model(entry.alias))
        self.bump(entry)
        self._turn()

    async def _until_it_ends(self, runner: Runner, entry: ModelState) -> None:
        """Watch over one that is ready; one that ends by itself has crashed."""
        assert runner.process is not None
        await runner.process.exited.wait()
        if runner.phase != "ready":
            return
        # Before anything else: the next request must not be sent to it, nor have it loaded again without its rest.
        runner.phase, runner.is_going = "stopping", True
        self._rest(entry, 1)
        tail = await asyncio.to_thread(runner.process.log_tail, 5)
        code = runner.process.exit_code or 0
        how = f"killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        log.error(
            "model_crashed",
            alias=entry.alias,
            port=runner.port,
            pid=runner.process.pid,
            how=how,
            active=runner.active,
            tail=tail,
        )
        await self.loader.stop(runner)
        self._gone(runner, entry)
        self._count(crashes=1)
        entry.wanted = "restore"
        self._failed(entry, f"it crashed: {how}" + (f": {tail[-1][:200]}" if tail else ""))
        self._turn()

    def _failed(self, entry: ModelState, reason: str, *, can_retry: bool = True) -> None:
        """Note a failure: it is tried again after a rest, or not at all. While another llama-server of it runs, it goes on with that one."""
        if any(runner.phase == "ready" for runner in entry.runners):
            entry.misfires += 1
            entry.error, entry.wanted = reason, ""
            self._rest(entry, entry.misfires if can_retry else len(BACK_OFF_S))
            log.warning("replica_rests", alias=entry.alias, misfires=entry.misfires, reason=reason)
            return
        entry.attempts += 1
        entry.error, entry.misfires = reason, 0
        retries = self.catalogue.system.model_load_max_retries
        if not can_retry or entry.attempts > retries:
            entry.failed = reason
            entry.wanted = ""
            log.error(
                "model_failed", alias=entry.alias, attempts=entry.attempts, reason=reason, can_retry=can_retry
            )
        else:
            self._rest(entry, entry.attempts)
            log.warning("model_rests", alias=entry.alias, attempts=entry.attempts, reason=reason)
        self.bump(entry)

    def _rest(self, entry: ModelState, failures: int) -> None:
        """Let a model not be tried again for as long as so many failures in a row mean."""
        entry.rest_until_s = self._clock.monotonic_s() + BACK_OFF_S[min(failures, len(BACK_OFF_S)) - 1]

    # ---- unloading

    def _let_go(self, runner: Runner, *, is_forced: bool = False) -> None:
        """Unload one once what it has begun has ended; one that is loading, or `is_forced`, at once."""
        if runner.is_going:
            return
        at_once = is_forced or runner.phase == "loading"
        runner.is_stop_requested = True
        self._unload(runner, at_once=at_once)

    async def cut_off(self, runner: Runner) -> None:
        """End one at once, whatever it is doing, and wait until it is gone."""
        self._let_go(runner, is_forced=True)
        await runner.gone.wait()

    def _unload(self, runner: Runner, *, at_once: bool = False) -> None:
        runner.phase, runner.is_going = "stopping", True
        self.bump(self.model_states.get(runner.alias))
        self._tasks.start(self._stop(runner, at_once=at_once), name=f"stop-{runner.port}")

    async def _stop(self, runner: Runner, *, at_once: bool = False) -> None:
        """Unload one: wait until it is idle, end its process, see its memory come back."""
        if not at_once:
            await runner.idle.wait()
        before = {device.index: device.free_bytes for device in self.memory.read()}
        await self.loader.stop(runner)
        await runner.settled.wait()  # what was about to be spawned is gone too
        # A load right after would else be refused by memory that is only on its way back.
        await wait_back(self.memory, runner.devices, before, sum(runner.memory.values()))
        entry = self.model_states.get(runner.alias)
        self._gone(runner, entry)
        self._count(ejects=1)
        self._events.ejected(runner.alias)
        self._turn()

    def _gone(self, runner: Runner, entry: ModelState | None) -> None:
        if entry is not None and runner in entry.runners:
            entry.runners.remove(runner)
        self._lives.pop(runner.serial, None)
        runner.gone.set()
        self._devices_at_s = -1e9
        for callback in self._removed_callbacks:
            callback(runner)
        self.bump(entry)

    def _count(self, *, loads: int = 0, loaded: int = 0, ejects: int = 0, crashes: int = 0) -> None:
        t = self.totals
        self.totals = ManagerCounts(
            t.loads + loads, t.loaded + loaded, t.ejects + ejects, t.crashes + crashes
        )
