"""The life of the manager's llama-servers: started, watched while they load and run, stopped, and removed.

The scheduler decides what is done and when (scheduler_loop.py); it is asked again after each step that takes
time.
"""

import asyncio
from collections.abc import Callable

from appliance.base.logs import get_logger
from appliance.base.tasks import Tasks
from appliance.models.manager.device_memory import DeviceMemory
from appliance.models.manager.estimates import Estimates
from appliance.models.manager.events import ManagerEvents
from appliance.models.manager.model_file import check_file, is_file_changed
from appliance.models.manager.model_state import ModelState
from appliance.models.manager.state import ManagerState
from appliance.models.manager.status_view import StatusView
from appliance.models.manager.waiters import LoadWaiter
from appliance.models.runner.failures import LoadFailed
from appliance.models.runner.load_history import LoadHistory
from appliance.models.runner.loader import Loader
from appliance.models.runner.proc import memory_bytes
from appliance.models.runner.runner import Runner
from appliance.models.runner.vram import wait_memory_freed
from appliance.models.status.views import RAM

log = get_logger("models")
BACK_OFF_S = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0)  # after the first, second … failure in a row
CRASH_LOG_LINES = 5
MAX_LOADING_PERCENT = 99  # 100 = ready


class RunnerSupervisor:
    """Starts, watches and stops llama-servers; makes no decisions.

    Args:
        state: Shared with the other parts of the manager.
        loader: Starts and stops the processes.
        estimates: What a load is expected to take.
        device_memory: Where models are loaded.
        history: Records every load.
        view: Makes the result that load waiters get.
        events: Gets loads and ejects.
        tasks: Runs what takes time.
        reschedule: Called whenever something changed that the scheduler may act upon.
    """

    def __init__(
        self,
        state: ManagerState,
        *,
        loader: Loader,
        estimates: Estimates,
        device_memory: DeviceMemory,
        history: LoadHistory,
        view: StatusView,
        events: ManagerEvents,
        tasks: Tasks,
        reschedule: Callable[[], None],
    ) -> None:
        self._state = state
        self._loader = loader
        self._estimates = estimates
        self._device_memory = device_memory
        self._history = history
        self._view = view
        self._events = events
        self._tasks = tasks
        self._reschedule = reschedule
        self._last_serial = 0
        self._removed_callbacks: list[Callable[[Runner], None]] = []

    def add_removed_callback(self, callback: Callable[[Runner], None]) -> None:
        """Call `callback` for each llama-server that has been removed."""
        self._removed_callbacks.append(callback)

    # ---- loading

    def start(self, model: ModelState, devices: tuple[int, ...], now_s: float) -> None:
        """Begin to load a model on these devices."""
        self._last_serial += 1
        runner = Runner(
            serial=self._last_serial,
            alias=model.alias,
            model=model.definition,
            devices=devices,
            slots=model.slots,
            need_bytes=self._estimates.need_bytes(model),
            load_started_s=now_s,
            started_at_s=self._state.clock.now_s(),
        )
        if not runner.need_bytes:
            runner.free_at_start = self._device_memory.free_now(now_s)
        runner.idle.set()
        model.runners.append(runner)
        self._state.runners[runner.serial] = runner
        model.loads += 1
        model.has_reservation = False
        self._state.count(loads=1)
        log.info(
            "model_loading",
            alias=model.alias,
            devices=devices,
            needs_mb=runner.need_bytes >> 20,
            waiting=len(model.waiters),
        )
        self._state.notify(model)
        self._tasks.start(self._run(runner, model), name=f"load-{model.alias}")

    async def _run(self, runner: Runner, model: ModelState) -> None:
        try:
            await self._load(runner, model)
        finally:
            runner.load_ended.set()
        if runner.phase == "ready":
            await self._wait_crash(runner, model)

    async def _load(self, runner: Runner, model: ModelState) -> None:
        """Load it and complete its load waiters, or record why the load failed."""
        try:
            if not model.history_key or await is_file_changed(model):
                await check_file(model, self._state)
            if model.file_problem:
                raise LoadFailed(model.file_problem, can_retry=False)
            runner.history_key = model.history_key
            await self._loader.load(
                runner, model.header, self._state.catalogue, lambda: self._measure_load(runner, model)
            )
        except LoadFailed as exc:
            self._give_up(runner, model, exc)
            return
        except Exception as exc:  # an internal fault must not affect other models
            log.exception("load_error", alias=model.alias)
            await self._loader.stop(runner)
            self._give_up(runner, model, LoadFailed(f"an internal error: {exc!r}"))
            return
        if runner.phase == "loading":
            self._finish_load(runner, model)

    def _give_up(self, runner: Runner, model: ModelState, failure: LoadFailed) -> None:
        is_stop_requested = runner.is_stop_requested
        self._remove(runner, model)
        if not is_stop_requested:
            self.record_failure(model, failure.reason, can_retry=failure.can_retry)
        self._reschedule()

    def _measure_load(self, runner: Runner, model: ModelState) -> None:
        """Record the progress of a load, by the memory that it holds already."""
        process = runner.process
        if process is None or not process.pid:
            return
        # The file's pages pass through the process, wherever they are stored in the end.
        resident_bytes, file_bytes = memory_bytes(process.pid)
        if RAM in runner.devices:
            runner.memory_by_device, runner.file_bytes = {RAM: resident_bytes}, file_bytes
        else:
            runner.memory_by_device = self._device_memory.memory.of_process(process.pid)
        expected_bytes = model.size_bytes if model.header is not None else runner.need_bytes
        percent = int(100 * resident_bytes / expected_bytes) if expected_bytes else 0
        percent = min(MAX_LOADING_PERCENT, percent)
        phase = runner.load_phase
        runner.load_phase = "loading" if process.is_listening else "starting"
        if (percent, runner.load_phase) != (runner.load_progress, phase):
            runner.load_progress = max(percent, runner.load_progress)
            self._state.notify(model)

    def _finish_load(self, runner: Runner, model: ModelState) -> None:
        now_s = self._state.clock.monotonic_s()
        self._measure_load(runner, model)  # now it has all its memory
        runner.phase, runner.load_progress = "ready", 100
        self._device_memory.invalidate()
        if not runner.memory_by_device:  # the driver may hide processes in a container
            self._assume_memory(runner, now_s)
        runner.ready_since_s = runner.idle_since_s = now_s
        runner.load_s = model.load_s = now_s - runner.load_started_s
        model.background_load, model.failure, model.replica_failures = "", "", 0
        self._history.record_load(runner.history_key, seconds=runner.load_s, size_bytes=model.size_bytes)
        self._state.count(loaded=1)
        self._events.loaded(model.alias, runner.load_s)
        log.info(
            "model_ready", alias=model.alias, port=runner.port, pid=runner.pid, load_s=round(runner.load_s, 3)
        )
        self._answer_load_waiters(runner, model)
        self._state.notify(model)
        self._reschedule()

    def _assume_memory(self, runner: Runner, now_s: float) -> None:
        """Record what a llama-server takes that the driver does not show.

        1. an estimate is known   → that
        2. else                   → what its devices have less than before the load: others load after it
        """
        if runner.need_bytes:  # 1
            share_bytes = runner.need_bytes // len(runner.devices)
            runner.memory_by_device = dict.fromkeys(runner.devices, share_bytes)
            return
        free, before = self._device_memory.free_now(now_s), runner.free_at_start  # 2
        runner.memory_by_device = {
            index: max(0, before[index] - free[index])
            for index in runner.devices
            if index in before and index in free
        }
        self._history.record_memory(runner.history_key, runner.memory_bytes)

    def _answer_load_waiters(self, runner: Runner, model: ModelState) -> None:
        for waiter in list(model.waiters):
            if isinstance(waiter, LoadWaiter):
                model.waiters.pop(waiter, None)
                if waiter.keep_alive_s is not None:
                    runner.keep_alive_s = waiter.keep_alive_s
                if not waiter.future.done():
                    waiter.future.set_result(self._view.model(model.alias))

    # ---- failures

    async def _wait_crash(self, runner: Runner, model: ModelState) -> None:
        """Wait for the exit of a ready process; unless it was stopped, that is a crash."""
        process = runner.process
        assert process is not None
        await process.exited.wait()
        if runner.phase != "ready":
            return
        # First, so that no request is sent to it, and the model is not loaded again without a pause.
        runner.phase = "stopping"
        self._back_off(model, 1)
        tail = await asyncio.to_thread(process.log_tail, CRASH_LOG_LINES)
        code = process.exit_code or 0
        how = f"killed by signal {-code}" if code < 0 else f"exited with code {code}"
        log.error(
            "model_crashed",
            alias=model.alias,
            port=runner.port,
            pid=process.pid,
            how=how,
            active=runner.active,
            tail=tail,
        )
        await self._loader.stop(runner)
        self._remove(runner, model)
        self._state.count(crashes=1)
        model.background_load = "restore"
        self.record_failure(model, f"it crashed: {how}" + (f": {tail[-1][:200]}" if tail else ""))
        self._reschedule()

    def record_failure(self, model: ModelState, reason: str, *, can_retry: bool = True) -> None:
        """Record that a model failed to load, or crashed.

        1. another llama-server of it runs                        → it continues with that one for a while
        2. it cannot succeed, or has failed too often in a row    → it is not loaded again until it is reset
        3. else                                                   → it is loaded again after a pause

        Args:
            model: Its state.
            reason: Why, for the operator.
            can_retry: False = another load would fail in the same way.
        """
        if model.has_ready_runner():  # 1
            model.replica_failures += 1
            model.last_error, model.background_load = reason, ""
            retry_in_s = self._back_off(model, model.replica_failures if can_retry else len(BACK_OFF_S))
            log.warning(
                "replica_failed",
                alias=model.alias,
                in_a_row=model.replica_failures,
                reason=reason,
                retry_in_s=retry_in_s,
            )
            return
        model.attempts += 1
        model.last_error, model.replica_failures = reason, 0
        if not can_retry or model.attempts > self._state.catalogue.system.model_load_max_retries:  # 2
            model.failure, model.background_load = reason, ""
            log.error(
                "model_failed", alias=model.alias, attempts=model.attempts, reason=reason, can_retry=can_retry
            )
        else:  # 3
            retry_in_s = self._back_off(model, model.attempts)
            log.warning(
                "model_load_failed",
                alias=model.alias,
                attempts=model.attempts,
                reason=reason,
                retry_in_s=retry_in_s,
            )
        self._state.notify(model)

    def _back_off(self, model: ModelState, failures: int) -> float:
        """Block the next load for as long as so many failures in a row mean; return the seconds."""
        pause_s = BACK_OFF_S[min(failures, len(BACK_OFF_S)) - 1]
        model.blocked_until_s = self._state.clock.monotonic_s() + pause_s
        return pause_s

    # ---- unloading

    def request_stop(self, runner: Runner, *, is_forced: bool = False) -> None:
        """Unload a llama-server without a replacement.

        Args:
            runner: The llama-server; one that stops already is left alone.
            is_forced: End it at once. Otherwise its running requests end first; a load is always ended at
                once.
        """
        if runner.phase == "stopping":
            return
        at_once = is_forced or runner.phase == "loading"
        runner.is_stop_requested = True
        self.unload(runner, at_once=at_once)

    async def stop_now(self, runner: Runner) -> None:
        """End a llama-server at once, whatever it does, and wait until it is removed."""
        self.request_stop(runner, is_forced=True)
        await runner.removed.wait()

    async def cut_off(self, runner: Runner) -> None:
        """End a llama-server that stops already, without waiting for its running requests."""
        runner.is_stop_requested = True
        await self._loader.stop(runner)

    def unload(self, runner: Runner, *, at_once: bool = False) -> None:
        """Begin to unload a llama-server."""
        runner.phase = "stopping"
        self._state.notify(self._state.models.get(runner.alias))
        self._tasks.start(self._unload(runner, at_once=at_once), name=f"stop-{runner.port}")

    async def _unload(self, runner: Runner, *, at_once: bool) -> None:
        """Wait until it is idle, end its process, and wait for its memory."""
        if not at_once:
            await runner.idle.wait()
        memory = self._device_memory.memory
        free_before = {device.index: device.free_bytes for device in memory.read()}
        await self._loader.stop(runner)
        await runner.load_ended.wait()  # a process that was just being started has exited, too
        # Else the next load would be refused although the memory is about to be free.
        await wait_memory_freed(memory, runner.devices, free_before, runner.memory_bytes)
        self._remove(runner, self._state.models.get(runner.alias))
        self._state.count(ejects=1)
        self._events.ejected(runner.alias)
        self._reschedule()

    def _remove(self, runner: Runner, model: ModelState | None) -> None:
        if model is not None and runner in model.runners:
            model.runners.remove(runner)
        self._state.runners.pop(runner.serial, None)
        runner.removed.set()
        self._device_memory.invalidate()
        for callback in self._removed_callbacks:
            callback(runner)
        self._state.notify(model)

    async def close(self) -> None:
        """End every llama-server at once."""
        runners = list(self._state.runners.values())
        for runner in runners:
            runner.phase, runner.is_stop_requested = "stopping", True
        await asyncio.gather(*(self._end(runner) for runner in runners))

    async def _end(self, runner: Runner) -> None:
        await self._loader.stop(runner)
        await runner.load_ended.wait()  # a process that was just being started has exited, too
        runner.removed.set()
