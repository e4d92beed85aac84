"""Build who answers, from the settings: at start, and again at each reload."""

import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING

from appliance.base.clock import Clock
from appliance.base.logs import get_logger
from appliance.base.metrics.registry import Metrics
from appliance.base.proxies import Proxies
from appliance.base.tasks import Tasks
from appliance.base.wire.pool import ConnectionPool
from appliance.base.wire.types import PoolLimits, Timeouts
from appliance.downloads.contract import Downloader
from appliance.downloads.engine import DownloadEngine
from appliance.downloads.job import DownloadJob
from appliance.downloads.jobs import DownloadJobs
from appliance.downloads.request import DownloadFolders
from appliance.engines.backends.managed import ManagedBackend
from appliance.engines.fleet import Fleet
from appliance.engines.lora import file as lora_file
from appliance.engines.lora import order as lora_order
from appliance.engines.lora.adapters import AdapterReconciler
from appliance.engines.lora.orders import AdapterOrders
from appliance.engines.router import Router
from appliance.host.gpu import real_gpus
from appliance.models.manager.manager import ModelManager
from appliance.models.manager.watchdog import MEASURE_EVERY_S, Watchdog
from appliance.models.runner.load_history import LoadHistory
from appliance.models.runner.loader import Loader
from appliance.models.runner.orphans import Records
from appliance.models.runner.vram import pick_memory
from appliance.models.status.measures import RequestStatistics
from appliance.models.table.catalogue import System
from appliance.settings import Settings, download_dir

if TYPE_CHECKING:
    from appliance.engines.kv.follower import KvFollower

log = get_logger("models")
CHANGES_FILE = "backends.json"


def build_fleet(settings: Settings, *, tasks: Tasks, clock: Clock, metrics: Metrics) -> Fleet:
    """Give the fleet with its router; `apply` opens the backends. Call it inside the event loop."""
    router = Router(settings.engines, clock=clock, metrics=metrics)
    fleet = Fleet(
        router,
        tasks=tasks,
        clock=clock,
        metrics=metrics,
        changes_path=Path(settings.host.state_dir) / CHANGES_FILE,
    )
    fleet.apply(settings.engines, settings.fleet, settings.environ)
    return fleet


def build_adapters(
    router: Router,
    settings: Settings,
    *,
    tasks: Tasks,
    clock: Clock,
    metrics: Metrics,
) -> AdapterReconciler:
    """Give the declared LoRA adapters; `start` brings the backends to have them. Call it inside the event loop."""
    return AdapterReconciler(
        router, tasks=tasks, clock=clock, metrics=metrics, path=Path(settings.host.state_dir) / lora_file.FILE
    )


def build_lora_orders(
    adapters: AdapterReconciler,
    settings: Settings,
    *,
    downloader: Downloader | None,
    tasks: Tasks,
    clock: Clock,
) -> AdapterOrders:
    """Give who takes orders for adapters. `downloader` None: none can be downloaded."""
    folders, own_folder = lora_folders(settings)
    return AdapterOrders(
        adapters,
        downloader=downloader,
        folders=folders,
        own_folder=own_folder,
        tasks=tasks,
        clock=clock,
        path=Path(settings.host.state_dir) / lora_order.FILE,
        has_variable=has_variable(settings),
        resumes=settings.downloads.download_resume,
    )


def lora_folders(settings: Settings) -> tuple[list[Path], Path]:
    """Give the folders where adapters may lie, and the one that they are downloaded to."""
    own_folder = Path(settings.host.state_dir) / "adapters"
    folders = list(map(Path, settings.engines.lora_allowed_dirs)) or [
        own_folder,
        download_dir(settings.downloads, settings.host),
    ]
    return folders, own_folder if own_folder in folders else folders[0]


def has_variable(settings: Settings) -> Callable[[str], bool]:
    """Give what says whether the environment has a variable, itself or as a file's name."""
    return lambda name: bool(settings.environ.get(name) or settings.environ.get(f"{name}_FILE"))


def build_downloader(settings: Settings) -> DownloadEngine:
    """Give who fetches."""
    return DownloadEngine(
        settings.downloads,
        output_roots=download_roots(settings),
        proxies=Proxies.from_environ(settings.environ),
    )


def download_roots(settings: Settings) -> tuple[Path, ...]:
    """Give the folders for downloads and for adapters: nothing is fetched to anywhere else."""
    adapters = list(map(Path, settings.engines.lora_allowed_dirs)) or [
        Path(settings.host.state_dir) / "adapters"
    ]
    folders = download_folders(settings)
    return (folders.home, *folders.others, *adapters)


def download_folders(settings: Settings) -> DownloadFolders:
    return DownloadFolders(
        download_dir(settings.downloads, settings.host),
        tuple(map(Path, settings.downloads.download_allowed_dirs)),
    )


def build_jobs(
    settings: Settings,
    downloader: Downloader,
    *,
    tasks: Tasks,
    clock: Clock,
    on_fetched: Callable[[DownloadJob], Awaitable[None]] | None = None,
) -> DownloadJobs:
    """Return the download jobs, not yet open. `on_fetched`: see DownloadJobs."""
    own = settings.downloads
    return DownloadJobs(
        downloader,
        tasks=tasks,
        clock=clock,
        path=Path(settings.host.state_dir) / "jobs.json",
        most_running=own.download_jobs,
        has_variable=has_variable(settings),
        resumes=own.download_resume,
        on_fetched=on_fetched,
    )


def build_kv_events(
    settings: Settings,
    kind: Callable[[], str | None],
    *,
    pod: str,
    model: str,
    tasks: Tasks,
    clock: Clock,
) -> "KvFollower | None":
    """Give who follows an engine's KV events, not yet started; None = that is not wanted.

    Takes   kind: of the engine, by the time it is known; with any but vLLM and SGLang there is nothing to follow
    """
    own = settings.engines
    if not (own.kv_events and pod and model):
        return None
    from appliance.engines.kv.follower import (  # here: nobody else is to carry these in memory
        KvFollower,
        KvSource,
    )
    from appliance.engines.kv.index import Index, IndexKey

    sources = {
        "vllm": KvSource(own.vllm_zmq_endpoint, own.vllm_zmq_topic_filter.rstrip("*")),
        "sglang": KvSource(own.sglang_zmq_endpoint, own.sglang_zmq_topic_filter.rstrip("*")),
    }
    index = Index(
        IndexKey(own.redis_host, own.redis_port, own.redis_db, own.redis_password, own.redis_tls),
        pod=pod,
        model=model,
    )
    return KvFollower(
        lambda: sources.get(kind() or ""), index, most=own.kv_events_max_blocks, tasks=tasks, clock=clock
    )


def has_llama_server(settings: Settings) -> bool:
    """Whether models could be run here, though none is named yet: one that is pulled is to be served."""
    return shutil.which(settings.catalogue.llama_server or "llama-server") is not None


def build_manager(
    settings: Settings,
    *,
    tasks: Tasks,
    clock: Clock,
    wire: ConnectionPool,
    statistics: RequestStatistics,
) -> ModelManager | None:
    """Give the model manager, not yet open; None = there are no models, and nothing that could run any. Call it inside the event loop.

    Raises  Invalid: the table names a GPU that does not exist
    """
    catalogue = settings.catalogue
    if not catalogue.models and not has_llama_server(settings):
        return None
    own, state_dir = settings.models, Path(settings.host.state_dir)
    is_simulated = settings.host.gpu_mode == "simulated" and not real_gpus()[0]
    offloads = any(model.params.n_gpu_layers != 0 for model in catalogue.models.values())
    memory, why = pick_memory(catalogue.system.gpu_devices, is_simulated=is_simulated, offloads=offloads)
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


def manager_wire(system: System) -> ConnectionPool:
    """Give the pool of connections to llama-servers of ours, as large as the table says."""
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
    """Join an open manager to those who answer, and watch over what it runs."""
    fleet.set_managed(
        ManagedBackend(manager, settings=settings.engines, wire=wire, clock=clock, metrics=metrics)
    )
    watchdog = Watchdog(manager)
    tasks.every(MEASURE_EVERY_S, watchdog.measure, name="measure-models")
    tasks.every(settings.models.model_look_s, watchdog.probe, name="probe-models")
