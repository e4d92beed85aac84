"""Build the model manager from the settings, and add it to the backends."""

import shutil
from pathlib import Path

from appliance.base.clock import Clock
from appliance.base.errors import Invalid
from appliance.base.logs import get_logger
from appliance.base.metrics.registry import Metrics
from appliance.base.tasks import Tasks
from appliance.base.wire.pool import ConnectionPool
from appliance.base.wire.types import PoolLimits, Timeouts
from appliance.engines.backends.managed import ManagedBackend
from appliance.engines.fleet import Fleet
from appliance.host.gpu import real_gpus
from appliance.models.manager.manager import ModelManager
from appliance.models.manager.no_models import NoModels
from appliance.models.manager.watchdog import MEASURE_EVERY_S, Watchdog
from appliance.models.runner.load_history import LoadHistory
from appliance.models.runner.loader import Loader
from appliance.models.runner.orphans import Records
from appliance.models.runner.system_memory import SystemMemory
from appliance.models.runner.vram import Memory, pick_memory
from appliance.models.status.measures import RequestStatistics
from appliance.models.table.entries import System
from appliance.settings import Settings

log = get_logger("models")


def has_llama_server(settings: Settings) -> bool:
    """Whether llama-server is installed, so that a model pulled later can be run."""
    return shutil.which(settings.catalogue.llama_server or "llama-server") is not None


def build_manager(
    settings: Settings,
    *,
    tasks: Tasks,
    clock: Clock,
    wire: ConnectionPool,
    statistics: RequestStatistics,
) -> ModelManager | None:
    """Build the model manager, not yet open. Called inside the event loop.

    Returns:
        The manager; None = there are no models, and no llama-server that could run any.

    Raises:
        Invalid: The table names a GPU that does not exist.
    """
    catalogue = settings.catalogue
    is_wanted = bool(catalogue.models) or settings.models.model_dir is not None
    if not is_wanted and not has_llama_server(settings):
        return None
    own, state_dir = settings.models, Path(settings.host.state_dir)
    offloads = any(model.params.n_gpu_layers != 0 for model in catalogue.models.values())
    memory, why = _memory(settings, offloads=offloads)
    log.info("model_memory", devices=[device.name for device in memory.read()], why=why)
    loader = Loader(
        log_dir=own.model_log_dir or state_dir / "model-logs",
        records=Records(state_dir / "runners"),
        environ=settings.environ,
        tasks=tasks,
        wire=wire,
        first_port=own.model_first_port,
        last_port=own.model_last_port,
    )
    return ModelManager(
        catalogue,
        loader=loader,
        memory=memory,
        history=LoadHistory(state_dir / "model-lessons.json"),
        tasks=tasks,
        clock=clock,
        extra_wait_s=own.model_swap_wait_s,
        ageing_s=settings.engines.queue_ageing_s,
        events=statistics,
    )


def build_no_models(settings: Settings, *, clock: Clock) -> NoModels:
    """Build what reports that no models are run here; called where `build_manager` returns None."""
    system = settings.catalogue.system
    try:
        memory, _ = _memory(settings)
    except Invalid:  # a GPU that is not here: nothing is loaded into it
        memory = SystemMemory()
    return NoModels(memory, system=system, clock=clock)


def _memory(settings: Settings, *, offloads: bool = True) -> tuple[Memory, str]:
    is_simulated = settings.host.gpu_mode == "simulated" and not real_gpus()[0]
    return pick_memory(settings.catalogue.system.gpu_devices, is_simulated=is_simulated, offloads=offloads)


def build_runner_pool(system: System) -> ConnectionPool:
    """Build the pool of connections to the appliance's llama-servers, with the limits of the table."""
    return ConnectionPool(
        PoolLimits(
            Timeouts(connect_s=2.0, first_byte_s=None, idle_s=None),
            max_connections=system.http_max_connections,
            max_idle_per_origin=system.http_max_keepalive,
        )
    )


def add_manager(
    fleet: Fleet,
    manager: ModelManager,
    settings: Settings,
    *,
    wire: ConnectionPool,
    clock: Clock,
    metrics: Metrics,
    tasks: Tasks,
) -> None:
    """Add an open manager to the backends, and start its watchdog."""
    fleet.set_managed(
        ManagedBackend(
            manager,
            settings=settings.engines,
            wire=wire,
            clock=clock,
            metrics=metrics,
            callbacks=fleet.router.callbacks,
            is_wanted=settings.models.model_dir is not None,
        )
    )
    watchdog = Watchdog(manager)
    tasks.every(MEASURE_EVERY_S, watchdog.measure, name="measure-models")
    tasks.every(settings.models.model_look_s, watchdog.probe, name="probe-models")
