"""The model manager: the queue of each model, its llama-servers, and what is done next.

It is composed of parts that share one ManagerState, which is written on the event loop only:

    admission       lets requests in: at once, or after a wait in the model's queue
    scheduler loop  asks the scheduler what must happen next, does it, and asks again
    supervisor      starts, watches and stops llama-servers; after each change the loop runs again
    leases          slots, granted and taken back
    status view     the readings for interfaces
"""

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from appliance.base.clock import Clock
from appliance.base.errors import NoSuchModel
from appliance.base.logs import get_logger
from appliance.base.tasks import Tasks
from appliance.base.watch import Watched
from appliance.models.manager.admission import NORMAL_PRIORITY, Admission
from appliance.models.manager.device_memory import DeviceMemory
from appliance.models.manager.errors import ShuttingDown
from appliance.models.manager.estimates import Estimates
from appliance.models.manager.events import NO_EVENTS, ManagerEvents
from appliance.models.manager.leases import Leases
from appliance.models.manager.model_file import check_file
from appliance.models.manager.model_state import ModelState
from appliance.models.manager.retention import Retention
from appliance.models.manager.scheduler_input import SchedulerInput
from appliance.models.manager.scheduler_loop import SchedulerLoop
from appliance.models.manager.state import ManagerState
from appliance.models.manager.status_view import StatusView
from appliance.models.manager.supervisor import RunnerSupervisor
from appliance.models.manager.table_update import updated_models, with_adapters
from appliance.models.manager.waiters import Lease, WaitStatus
from appliance.models.runner.load_history import LoadHistory
from appliance.models.runner.loader import Loader
from appliance.models.runner.log_reader import find_log
from appliance.models.runner.runner import Runner
from appliance.models.runner.vram import Memory
from appliance.models.status.views import (
    DeviceView,
    Ejected,
    FailedView,
    HealthView,
    ManagerCounts,
    ModelView,
    QueueView,
    RequestSample,
    ServerStatus,
)
from appliance.models.table.catalogue import Catalogue, LoraAdapter

log = get_logger("models")


class ModelManager:
    """Runs models and shows their state (ModelManagerApi). Build it inside the event loop, then `open`.

    Args:
        catalogue: The table of models.
        loader: Starts and stops processes.
        memory: Where models are loaded.
        history: Records of earlier loads.
        tasks: Runs what takes time.
        clock: The time.
        events: Gets requests, loads and ejects, for metrics.
        extra_wait_s, ageing_s: See SchedulerRules.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        *,
        loader: Loader,
        memory: Memory,
        history: LoadHistory,
        tasks: Tasks,
        clock: Clock,
        events: ManagerEvents = NO_EVENTS,
        extra_wait_s: float = 30.0,
        ageing_s: float = 10.0,
    ) -> None:
        self.loader = loader
        self.history = history
        self.clock = clock
        self.device_memory = DeviceMemory(memory)
        self._tasks = tasks
        self._ageing_s = ageing_s
        self._state = ManagerState(catalogue, clock=clock)
        estimates = Estimates(history, self.device_memory)
        self.retention = Retention(self._state)
        self._view = StatusView(
            self._state, estimates=estimates, retention=self.retention, device_memory=self.device_memory
        )
        self._supervisor = RunnerSupervisor(
            self._state,
            loader=loader,
            estimates=estimates,
            device_memory=self.device_memory,
            history=history,
            view=self._view,
            events=events,
            tasks=tasks,
            reschedule=self.reschedule,
        )
        leases = Leases(self._state, events=events, reschedule=self.reschedule)
        self._admission = Admission(
            self._state,
            leases=leases,
            supervisor=self._supervisor,
            view=self._view,
            events=events,
            reschedule=self.reschedule,
        )
        self._scheduler_loop = SchedulerLoop(
            self._state,
            scheduler_input=SchedulerInput(
                self._state, estimates=estimates, retention=self.retention, device_memory=self.device_memory
            ),
            supervisor=self._supervisor,
            leases=leases,
            events=events,
            extra_wait_s=extra_wait_s,
            ageing_s=ageing_s,
        )
        self._read_table()

    # ---- life

    async def open(self) -> None:
        """End orphans, check the files, start to preload."""
        orphans = await asyncio.to_thread(self.loader.records.end_orphans)
        if orphans:
            log.warning("orphans_ended", aliases=[record.get("alias") for record in orphans])
        await asyncio.to_thread(self.history.read)
        await self._check_files(list(self._state.models.values()))
        self._state.set_server_status("ready")
        # In the background, so that the first request need not wait for it.
        self._tasks.start(self.loader.find_program(self.catalogue), name="find-llama-server")
        aliases = self.catalogue.preloaded()
        if aliases:
            self._tasks.start(self._preload(aliases), name="preload-models")

    async def _check_files(self, models: Iterable[ModelState]) -> None:
        for model in models:
            await check_file(model, self._state)
            if model.file_problem and model.waiters and not model.failure:
                self._supervisor.record_failure(model, model.file_problem, can_retry=False)
            self.reschedule()

    async def _preload(self, aliases: Sequence[str]) -> None:
        for number, alias in enumerate(aliases):
            if number:
                await asyncio.sleep(self.catalogue.system.preload_delay_sec)
            model = self._state.models.get(alias)
            if model is not None and not model.current_runners():
                model.background_load = "preload"
                self.reschedule()

    def announce_shutdown(self) -> None:
        """Tell followers that the appliance is shutting down; requests may end within the grace period."""
        self._state.set_server_status("shutting_down")

    async def close(self) -> None:
        """Take no more requests, and end every llama-server."""
        self.announce_shutdown()
        self._state.is_closed = True
        self._scheduler_loop.close()
        for model in self._state.models.values():
            model.background_load = ""
            for waiter in list(model.waiters):
                waiter.fail(ShuttingDown())
        await self._supervisor.close()
        await asyncio.to_thread(self.history.write)

    def reschedule(self) -> None:
        """Run the scheduler. Called whenever something changed that it may act upon."""
        self._scheduler_loop.run()

    def set_swap_wait(self, extra_wait_s: float) -> None:
        """Set how long a queue waits before a busy model is unloaded for it (MODEL_SWAP_WAIT_S)."""
        self._scheduler_loop.extra_wait_s = extra_wait_s

    def add_removed_callback(self, callback: Callable[[Runner], None]) -> None:
        """Call `callback` for each llama-server that has been removed."""
        self._supervisor.add_removed_callback(callback)

    def add_models_callback(self, callback: Callable[[], None]) -> None:
        """Call `callback` whenever a model's file says something else about it than before."""
        self._state.models_callbacks.append(callback)

    # ---- the table

    def apply(self, catalogue: Catalogue) -> None:
        """Replace the table.

        Llama-servers of models that changed or left the table end their running requests and are unloaded.
        Requests for a changed model keep waiting.
        """
        former_models, former_system = self._state.models, self.catalogue.system
        former_preloaded = set(self.catalogue.preloaded())
        self._state.catalogue = catalogue
        self._read_table()
        for alias, former in former_models.items():
            if self._state.models.get(alias) is former:
                continue
            for runner in former.current_runners():
                self._supervisor.request_stop(runner)
            if alias not in self._state.models:
                for waiter in list(former.waiters):
                    waiter.fail(
                        NoSuchModel(f"The model {alias!r} was removed from the table.", param="model")
                    )
        has_new_system = catalogue.system != former_system
        to_check = [
            model for model in self._state.models.values() if not model.is_file_checked or has_new_system
        ]
        self._tasks.start(self._check_files(to_check), name="check-model-files")
        self._state.notify()
        self.reschedule()
        new = [alias for alias in catalogue.preloaded() if alias not in former_preloaded]
        if new:
            self._tasks.start(self._preload(new), name="preload-models")

    def _read_table(self) -> None:
        self._state.models = updated_models(
            self.catalogue,
            self._state.models,
            adapters=self._state.adapters,
            ageing_s=self._ageing_s,
            now_at_s=self.clock.now_s(),
        )
        self._state.models_version += 1

    def set_adapters(self, alias: str, adapters: tuple[LoraAdapter, ...]) -> bool:
        """Run a model with these adapters, in addition to those of the table.

        Where that is a change, its llama-servers end their running requests and are unloaded; requests that
        wait keep their place in the queue.

        Returns:
            Whether it is a change.

        Raises:
            NoSuchModel: The table has no such model.
        """
        model = self._state.model(alias)
        if self._state.adapters.get(alias, ()) == adapters:
            return False
        self._state.adapters = {**self._state.adapters, alias: adapters}
        model.definition = with_adapters(self.catalogue.models[alias], self._state.adapters)
        was_wanted = bool(model.current_runners()) or model.background_load
        for runner in model.current_runners():
            self._supervisor.request_stop(runner)
        self.reset(alias)  # what failed with other adapters may work with these
        if was_wanted:
            self.restore(alias)
        log.info("model_adapters", alias=alias, adapters=[one.name for one in adapters])
        return True

    # ---- requests

    def lease(
        self,
        alias: str,
        *,
        flow: str = "",
        priority: int = NORMAL_PRIORITY,
        keep_alive_s: float | None = None,
        on_wait: Callable[[Callable[[], WaitStatus]], None] | None = None,
    ) -> Coroutine[Any, Any, Lease]:
        """Return the right to send one request to a llama-server of a model, which is loaded if it is not.

        Args:
            alias: A key of the table.
            flow: What gets one fair share of the queue, see FairQueue.
            priority: 0 high, 1 normal, 2 low.
            keep_alive_s: How long the model stays without a request afterwards; None = as configured,
                negative = for ever.
            on_wait: Called once if the request must wait, with a function that gives the state of the wait.

        Raises:
            NoSuchModel: The table has no such model.
            QueueFull: `max_queue_size_per_model` requests wait already.
            QueueTimeout: No slot became free within `queue_timeout_sec`.
            InsufficientMemory: The model does not fit, even if others are unloaded.
            AllPinned: The pinned models reach the limit of loaded models.
            ModelFailed: The model is not loaded again until it is reset.
            ShuttingDown: The appliance is shutting down.
        """
        return self._admission.lease(  # no coroutine around it: this runs for every request
            alias, flow=flow, priority=priority, keep_alive_s=keep_alive_s, on_wait=on_wait
        )

    # ---- what an operator may do

    async def load(self, alias: str, *, keep_alive_s: float | None = None) -> ModelView:
        """Load a model and wait until it is ready (see ModelManagerApi)."""
        return await self._admission.load(alias, keep_alive_s=keep_alive_s)

    async def eject(self, alias: str, *, force: bool = False) -> Ejected:
        """Unload a model (see ModelManagerApi)."""
        model = self._state.model(alias)
        model.background_load = ""
        runners = list(model.runners)
        waited_for = sum(runner.active for runner in runners)
        for runner in runners:
            if force and runner.phase == "stopping":  # it waits for its requests to end
                await self._supervisor.cut_off(runner)
            self._supervisor.request_stop(runner, is_forced=force)
        self._state.notify(model)
        for runner in runners:
            await runner.removed.wait()
        return Ejected(model.alias, bool(runners), waited_for)

    async def stop_now(self, runner: Runner) -> None:
        """End a llama-server at once, whatever it does, and wait until it is removed."""
        await self._supervisor.stop_now(runner)

    async def take_changed_file(self, alias: str) -> None:
        """Read a model's files again after a change, and forget what failed with the former ones.

        Its llama-servers end their running requests and are unloaded; what was loaded is loaded anew.
        """
        model = self._state.model(alias)
        log.info("model_file_changed", alias=alias, path=str(model.path or ""))
        was_wanted = bool(model.current_runners()) or bool(model.background_load)
        for runner in model.current_runners():
            self._supervisor.request_stop(runner)
        model.clear_failures()
        await self._check_files([model])
        if was_wanted and not model.file_problem:
            self.restore(alias)
        self._state.notify(model)

    def replace_silent(self, runner: Runner) -> None:
        """End a llama-server that is healthy and answers no request, and load its model anew.

        Requests that wait for its answer fail, and are sent to the new one.
        """
        if runner.phase == "ready":
            log.error("model_silent", alias=runner.alias, port=runner.port, in_a_row=runner.silent_answers)
            self._supervisor.request_stop(runner, is_forced=True)
            self._tasks.start(self._restore_after(runner), name=f"replace-{runner.alias}")

    async def _restore_after(self, runner: Runner) -> None:
        await runner.removed.wait()
        self.restore(runner.alias)

    def restore(self, alias: str) -> None:
        """Load a model again if it fits, although no request waits for it."""
        model = self._state.models.get(alias)
        if model is not None and not model.current_runners():
            model.background_load = "restore"
            self.reschedule()

    def set_keep_alive(self, alias: str, keep_alive_s: float) -> None:
        """Set how long a loaded model stays without a request (see ModelManagerApi)."""
        for runner in self._state.model(alias).current_runners():
            runner.keep_alive_s = keep_alive_s
        self.reschedule()
        self._state.notify()

    def reset(self, alias: str) -> FailedView | None:
        """Forget a model's failures (see ModelManagerApi)."""
        model = self._state.model(alias)
        alias, found = model.alias, None
        if model.attempts:
            found = FailedView(alias, model.attempts, model.failure or model.last_error)
        model.clear_failures()
        model.history_key = ""  # its file is checked again: it may have been replaced
        self._tasks.start(self._check_files([model]), name=f"check-file-{alias}")
        self._state.notify(model)
        self.reschedule()
        return found

    def pin(self, alias: str, *, pinned: bool = True) -> ModelView:
        """Pin or unpin a model; a pinned one is never unloaded (see ModelManagerApi)."""
        model = self._state.model(alias)
        model.is_pinned = pinned
        self._state.notify(model)
        self.reschedule()
        return self.model(alias)

    # ---- state

    @property
    def catalogue(self) -> Catalogue:
        """The table of models."""
        return self._state.catalogue

    @property
    def models_version(self) -> int:
        """Rises when models come or go, or when their files say something else about them."""
        return self._state.models_version

    @property
    def model_states(self) -> Mapping[str, ModelState]:
        """The state of each model, by alias."""
        return self._state.models

    def model_state(self, alias: str) -> ModelState:
        """Return the state of one model.

        Raises:
            NoSuchModel: The table has no such model.
        """
        return self._state.model(alias)

    @property
    def adapters(self) -> Mapping[str, tuple[LoraAdapter, ...]]:
        """Adapters in addition to those of the table, by alias of the model (see set_adapters)."""
        return self._state.adapters

    def runners(self) -> list[Runner]:
        """List every llama-server until it is removed; also those of models that left the table."""
        return list(self._state.runners.values())

    # ---- readings, see ModelManagerApi

    @property
    def changed(self) -> Watched[int]:
        """Rises with every change that a reader can see."""
        return self._state.changed

    @property
    def server_status(self) -> ServerStatus:
        """The status of the server as a whole."""
        return self._state.server_status

    @property
    def server_started_at_s(self) -> float:
        """When the manager was built, in seconds since 1970."""
        return self._state.server_started_at_s

    @property
    def server_updated_at_s(self) -> float:
        """When `server_status` changed last, in seconds since 1970."""
        return self._state.server_updated_at_s

    def models(self) -> list[ModelView]:
        """List every model of the table, in its order."""
        return self._view.models()

    def model(self, alias: str) -> ModelView:
        """Return one model; raises NoSuchModel."""
        return self._view.model(alias)

    def log_finder(self, alias: str, port: int = 0) -> Callable[[], Path | None]:
        """Return what finds a model's log (ModelManagerApi.log_finder)."""
        running = [runner for runner in self._view.model(alias).runners if port in (0, runner.port)]
        if running and running[0].log_path is not None:
            path = running[0].log_path
            return lambda: path
        return partial(find_log, self.loader.log_dir, alias, port)

    def queues(self) -> list[QueueView]:
        """List the queue of every model."""
        return self._view.queues()

    def devices(self) -> list[DeviceView]:
        """List the devices that models are loaded into."""
        return self._view.devices()

    def failed_models(self) -> list[FailedView]:
        """List the models that are not loaded again until they are reset."""
        return self._view.failed_models()

    def health(self) -> list[HealthView]:
        """List the results of the latest health probes of each model."""
        return self._view.health()

    def telemetry(self) -> Sequence[RequestSample]:
        """List the latest finished requests, oldest first."""
        return self._view.telemetry()

    def counts(self) -> ManagerCounts:
        """Return the totals since the start."""
        return self._view.counts()
