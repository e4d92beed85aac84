"""Build the parts that appliance and sidecar have in common: backends, adapters, downloads, pipeline."""

from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from appliance.base.clock import Clock
from appliance.base.log_buffer import LogBuffer
from appliance.base.metrics.registry import Metrics
from appliance.base.proxies import Proxies
from appliance.base.redis_client import RedisAddress
from appliance.base.tasks import Tasks
from appliance.base.watch import Watched
from appliance.base.wire.pool import ConnectionPool
from appliance.base.wire.types import PoolLimits
from appliance.downloads.contract import Downloader
from appliance.downloads.engine import DownloadEngine
from appliance.downloads.job import DownloadJob
from appliance.downloads.jobs import DownloadJobs
from appliance.downloads.request import DownloadFolders
from appliance.engines.fleet import Fleet
from appliance.engines.lora import order as lora_order
from appliance.engines.lora.manager import AdapterManager
from appliance.engines.lora.orders import AdapterOrders
from appliance.engines.lora.table_file import FILE_NAME as ADAPTERS_FILE
from appliance.engines.receipts import Receipts
from appliance.engines.router import Router
from appliance.front.pipeline.access_log import AccessLog
from appliance.front.pipeline.pipeline import RequestPipeline
from appliance.settings import Settings, download_dir
from appliance.settings_addresses import is_own_address

if TYPE_CHECKING:  # imported where it is used, so that other processes do not load its libraries
    from appliance.engines.kv.follower import KvFollower

CHANGES_FILE = "backends.json"
KV_REDIS_HOST = "redis-server"  # of the index of blocks, where REDIS_HOST is not set


@dataclass(frozen=True, slots=True)
class Services:
    """The parts that the appliance and the sidecar have in common.

    Attributes:
        fleet: The backends; its router answers requests.
        adapters: The declared LoRA adapters; the backends are kept in line with them.
        scrape_pool: Connections to the engines' metrics pages.
    """

    tasks: Tasks
    clock: Clock
    metrics: Metrics
    receipts: Receipts
    pipeline: RequestPipeline
    fleet: Fleet
    adapters: AdapterManager
    downloader: DownloadEngine
    lora_orders: AdapterOrders
    jobs: DownloadJobs
    scrape_pool: ConnectionPool

    @property
    def router(self) -> Router:
        """Chooses the backend of each request."""
        return self.fleet.router

    async def open(self, stack: AsyncExitStack) -> None:
        """Open the parts in order; the stack closes them in reverse order."""
        stack.push_async_callback(self.fleet.close)
        stack.push_async_callback(self.router.dispatcher.left_streams.close)
        stack.push_async_callback(self.scrape_pool.close)
        self.adapters.start()
        stack.push_async_callback(self.jobs.close)
        await self.jobs.open()
        await self.lora_orders.open()


def build_services(
    settings: Settings,
    *,
    tasks: Tasks,
    clock: Clock,
    metrics: Metrics,
    state: Watched[str],
    lines: LogBuffer | None = None,
    on_fetched: Callable[[DownloadJob], Awaitable[None]] | None = None,
) -> Services:
    """Build the common parts; of these only the backends are open. Called inside the event loop.

    Args:
        state: Of the process: starting, serving, draining or stopping.
        lines: Gets a copy of each line of the access log; None = no copies.
        on_fetched: Called when a download is complete; None = not needed.
    """
    receipts = Receipts()
    access_log = AccessLog(
        clock=clock,
        form=settings.general.log_format,
        on_line=None if lines is None else lambda at_s, line: lines.add(at_s, "appliance.access", line),
    )
    pipeline = RequestPipeline(
        settings.front, receipts=receipts, metrics=metrics, access_log=access_log, clock=clock, state=state
    )
    fleet = build_fleet(settings, tasks=tasks, clock=clock, metrics=metrics)
    adapters = build_adapters(fleet.router, settings, tasks=tasks, clock=clock, metrics=metrics)
    adapters.configure(settings.adapters)
    downloader = build_downloader(settings)
    return Services(
        tasks=tasks,
        clock=clock,
        metrics=metrics,
        receipts=receipts,
        pipeline=pipeline,
        fleet=fleet,
        adapters=adapters,
        downloader=downloader,
        lora_orders=build_lora_orders(adapters, settings, downloader=downloader, tasks=tasks, clock=clock),
        jobs=build_jobs(settings, downloader, tasks=tasks, clock=clock, on_fetched=on_fetched),
        scrape_pool=ConnectionPool(PoolLimits()),
    )


def build_fleet(settings: Settings, *, tasks: Tasks, clock: Clock, metrics: Metrics) -> Fleet:
    """Build the fleet with its router; the backends are open. Called inside the event loop."""
    router = Router(settings.engines, clock=clock, metrics=metrics)
    fleet = Fleet(
        router,
        tasks=tasks,
        clock=clock,
        metrics=metrics,
        changes_path=Path(settings.host.state_dir) / CHANGES_FILE,
        is_own_address=partial(
            is_own_address, proxy_host=settings.front.proxy_host, proxy_port=settings.front.proxy_port
        ),
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
) -> AdapterManager:
    """Build the declared LoRA adapters; `start` loads them. Called inside the event loop."""
    return AdapterManager(
        router, tasks=tasks, clock=clock, metrics=metrics, path=Path(settings.host.state_dir) / ADAPTERS_FILE
    )


def build_lora_orders(
    adapters: AdapterManager,
    settings: Settings,
    *,
    downloader: Downloader | None,
    tasks: Tasks,
    clock: Clock,
) -> AdapterOrders:
    """Build the orders for adapters. `downloader` None: adapters cannot be downloaded."""
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
    """Return the folders that adapters may be in, and the one that they are downloaded to."""
    own_folder = Path(settings.host.state_dir) / "adapters"
    folders = list(map(Path, settings.engines.lora_allowed_dirs)) or [
        own_folder,
        download_dir(settings.downloads, settings.host),
        *map(Path, settings.downloads.download_allowed_dirs),
    ]
    return folders, own_folder if own_folder in folders else folders[0]


def has_variable(settings: Settings) -> Callable[[str], bool]:
    """Return a function that says whether the environment has NAME or NAME_FILE."""
    return lambda name: bool(settings.environ.get(name) or settings.environ.get(f"{name}_FILE"))


def build_downloader(settings: Settings) -> DownloadEngine:
    """Build the download engine."""
    return DownloadEngine(
        settings.downloads,
        output_roots=download_roots(settings),
        proxies=Proxies.from_environ(settings.environ),
    )


def download_roots(settings: Settings) -> tuple[Path, ...]:
    """Return all folders that may be downloaded to: those for downloads, and those for adapters."""
    adapters = list(map(Path, settings.engines.lora_allowed_dirs)) or [
        Path(settings.host.state_dir) / "adapters"
    ]
    folders = download_folders(settings)
    return (folders.home, *folders.others, *adapters)


def download_folders(settings: Settings) -> DownloadFolders:
    """Return the folders that downloads may go to: the configured one, and those allowed beside it."""
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
    """Build the download jobs, not yet open. `on_fetched`: see DownloadJobs."""
    own = settings.downloads
    return DownloadJobs(
        downloader,
        tasks=tasks,
        clock=clock,
        path=Path(settings.host.state_dir) / "jobs.json",
        max_running=own.download_jobs,
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
    """Build the follower of an engine's KV events, not yet started.

    Args:
        kind: Returns the engine's kind, None = not known yet. Only vLLM and SGLang have events to follow.
        pod: This pod's name in the index; "" = events are not followed.
        model: The model's name in the index; "" = events are not followed.

    Returns:
        The follower; None = events are not to be followed.
    """
    own, redis = settings.engines, settings.storage
    if not (own.kv_events and pod and model):
        return None
    from appliance.engines.kv.follower import KvFollower
    from appliance.engines.kv.index import BlockIndex
    from appliance.engines.kv.subscription import KvSource

    sources = {
        "vllm": KvSource(own.vllm_zmq_endpoint, own.vllm_zmq_topic_filter.rstrip("*")),
        "sglang": KvSource(own.sglang_zmq_endpoint, own.sglang_zmq_topic_filter.rstrip("*")),
    }
    index = BlockIndex(
        RedisAddress(
            redis.redis_host or KV_REDIS_HOST,
            redis.redis_port,
            redis.redis_db,
            redis.redis_password,
            redis.redis_tls,
        ),
        pod=pod,
        model=model,
    )
    return KvFollower(
        lambda: sources.get(kind() or ""),
        index,
        max_blocks=own.kv_events_max_blocks,
        tasks=tasks,
        clock=clock,
    )
