"""`appliance sidecar`: serve beside one engine: its metrics, adapters, downloads, health.

    appliance sidecar -E vllm -B http://localhost:8000 [-H HOST] [-P 9000] [-M /metrics] [-I POD] [-N MODEL]

What changes something (adapters, downloads) is for callers on this machine, or with a key of
APPLIANCE_API_KEYS or OPERATOR_API_KEYS. For compatibility of flags and defaults: docs/compatibility.md.
"""

import argparse
import os
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace

from appliance import __version__
from appliance.base import logs
from appliance.base.clock import SystemClock
from appliance.base.logs import get_logger
from appliance.base.metrics.registry import Metrics
from appliance.base.plain_text import public_address
from appliance.base.settings import InvalidSettings, Problem
from appliance.base.tasks import Tasks
from appliance.build import Services, build_services, download_folders
from appliance.config_watch import watch_config
from appliance.downloads.engine import DownloadEngine
from appliance.engines.fleet import Fleet
from appliance.engines.lora.manager import AdapterManager
from appliance.engines.lora.orders import AdapterOrders
from appliance.engines.metrics.scrape import Scraper, ScrapeTarget
from appliance.engines.specs import BackendSpec, EngineKind, FleetSpec
from appliance.front.pipeline.pipeline import RequestPipeline
from appliance.front.server.server import serving_http
from appliance.front.settings import split_keys
from appliance.host.state_lock import SIDECAR, holding_state
from appliance.interfaces import SidecarEngine, SidecarNames, build_sidecar
from appliance.lifecycle import Lifecycle
from appliance.models.manager.manager import ModelManager
from appliance.models.table.catalogue import Catalogue
from appliance.reload import Reloader, reload_on_request
from appliance.service_manager import ServiceManager, from_environ
from appliance.settings import LeftOut, Settings, learn_secrets, load_or_raise
from appliance.settings_addresses import is_own_address
from appliance.settings_checks import is_open_host
from appliance.signals import handle_signals, hold_hangups, ignore_hangups

log = get_logger("sidecar")
KINDS: dict[str, EngineKind] = {
    "vllm": "vllm",
    "vllmdisaggregated": "vllm",
    "sglang": "sglang",
    "llamacpp": "llamacpp",
    "llama.cpp": "llamacpp",
    "auto": "auto",
}
NAME = "engine"
OPEN_PORT = (
    "Port {port} is open without a key: every client that reaches it can read the metrics. Changes are for "
    "callers on this machine. Set APPLIANCE_API_KEYS, or use -H 127.0.0.1."
)
# It serves beside one engine: other backends, models and their pools are the appliance's.
OF_THE_APPLIANCE = LeftOut(
    frozenset({"BACKENDS", "LB_OVERFLOW", "MODEL_DIR", "NOVITA_API_KEY", "NOVITA_API_KEY_FILE"}),
    frozenset({"backends", "groups", "models", "pools", "system"}),
)


@dataclass(frozen=True, slots=True)
class SidecarOptions:
    """The command line, parsed. `engine` is one of KINDS; `base_url` has no slash at its end."""

    engine: str
    host: str = "0.0.0.0"
    port: int = 9000
    base_url: str = "http://localhost:8000"
    metrics_path: str = "/metrics"
    pod: str = ""
    model: str = ""


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of the command line."""
    parser = argparse.ArgumentParser(
        "appliance sidecar", description="Serve beside one engine: its metrics, adapters, downloads, health."
    )
    parser.add_argument(
        "-E", "--engine", required=True, choices=list(KINDS), metavar="KIND", help=", ".join(KINDS)
    )
    parser.add_argument("-H", "--host", default="0.0.0.0", help="address to listen on (0.0.0.0)")
    parser.add_argument("-P", "--port", type=int, default=9000, help="port (9000)")
    parser.add_argument(
        "-B",
        "--engine-base-url",
        default="http://localhost:8000",
        metavar="URL",
        help="the engine (http://localhost:8000)",
    )
    parser.add_argument(
        "-M", "--engine-metrics-path", default="/metrics", metavar="PATH", help="its metrics page (/metrics)"
    )
    parser.add_argument(
        "-I",
        "--pod",
        default=os.environ.get("POD_NAME", ""),
        help="this pod's name, reported on /ready (POD_NAME)",
    )
    parser.add_argument(
        "-N",
        "--model",
        default=os.environ.get("SIDECAR_MODEL", ""),
        help="the model's name, where the engine does not report it (SIDECAR_MODEL); with a pod's name the "
        "engine's KV events are followed (docs/kv-events.md)",
    )
    return parser


def parse(arguments: list[str]) -> SidecarOptions:
    """Read the command line; where it is wrong, print why and exit with 2, as argparse does."""
    parser = build_parser()
    found = parser.parse_args(arguments)
    if not 0 <= found.port <= 65_535:
        parser.error(f"--port must be from 0 to 65535, not {found.port}")
    if not found.engine_metrics_path.startswith("/"):
        parser.error("--engine-metrics-path must begin with /")
    return SidecarOptions(
        engine=found.engine,
        host=found.host,
        port=found.port,
        base_url=found.engine_base_url.rstrip("/"),
        metrics_path=found.engine_metrics_path,
        pod=found.pod,
        model=found.model,
    )


def sidecar_settings(options: SidecarOptions, environ: Mapping[str, str]) -> tuple[Settings, list[Problem]]:
    """Read the settings of a sidecar: as those of `serve`, with this one engine and no other backend.

    Returns:
        (settings, warnings)

    Raises:
        InvalidSettings: They are invalid, or the engine's address is.
    """
    settings, problems = load_or_raise(environ, left_out=OF_THE_APPLIANCE)
    try:
        spec = BackendSpec(
            url=options.base_url,
            name=NAME,
            kind=KINDS[options.engine],
            models=(options.model,) if options.model else (),
        )
    except ValueError as exc:
        raise InvalidSettings(
            [Problem("--engine-base-url", options.base_url, "an http(s) address", str(exc).splitlines()[-1])]
        ) from None
    if is_own_address(options.base_url, proxy_host=options.host, proxy_port=options.port):
        remedy = "This is the sidecar's own address (--host, --port). Give the engine's."
        raise InvalidSettings(
            [Problem("--engine-base-url", options.base_url, "the address of another server", remedy)]
        )
    front = settings.front.model_copy(update={"proxy_host": options.host, "passthrough": False})
    return replace(
        settings, front=front, fleet=FleetSpec(backends=(spec,)), catalogue=Catalogue({})
    ), problems


class Sidecar:
    """The parts of a sidecar, as far as a reload changes them (`Reloadable`).

    Attributes:
        settings: As they are in force; a reload replaces them.
        manager: None: no model is run by a sidecar.
        accounts: None: a sidecar has none.
    """

    def __init__(self, settings: Settings, services: Services, lifecycle: Lifecycle) -> None:
        self.settings = settings
        self.lifecycle = lifecycle
        self.pipeline: RequestPipeline = services.pipeline
        self.fleet: Fleet = services.fleet
        self.downloader: DownloadEngine = services.downloader
        self.adapters: AdapterManager = services.adapters
        self.lora_orders: AdapterOrders = services.lora_orders
        self.manager: ModelManager | None = None
        self.accounts = None


def _build_reloader(options: SidecarOptions, sidecar: Sidecar) -> Reloader:
    def read(environ: dict[str, str]) -> tuple[Settings | None, list[Problem]]:
        try:
            return sidecar_settings(options, environ)
        except InvalidSettings as exc:
            return None, exc.problems

    return Reloader(sidecar, read=read)


@asynccontextmanager
async def running(
    options: SidecarOptions,
    settings: Settings,
    *,
    lifecycle: Lifecycle | None = None,
    service: ServiceManager | None = None,
) -> AsyncIterator[list[tuple[str, int]]]:
    """Run the sidecar; yield the addresses that it listens on.

    Args:
        options: The command line.
        settings: As `sidecar_settings` returns them.
        lifecycle: Asks for reloads and the stop; None = nothing does.
        service: Is told of reloads; None = there is no service manager.
    """
    clock, metrics, lifecycle = SystemClock(), Metrics(), lifecycle or Lifecycle([])
    lifecycle.state.set("serving")
    async with AsyncExitStack() as stack:
        tasks = await stack.enter_async_context(Tasks())
        services = build_services(settings, tasks=tasks, clock=clock, metrics=metrics, state=lifecycle.state)
        sidecar = Sidecar(settings, services, lifecycle)
        await services.open(stack)
        engine = SidecarEngine(services.router, NAME)
        scraper = Scraper(
            ScrapeTarget(options.base_url, KINDS[options.engine], options.metrics_path),
            wire=services.scrape_pool,
            tasks=tasks,
            clock=clock,
            timeout_s=settings.engines.request_timeout,
            adapters=engine.adapters,
        )
        server, kv_events = build_sidecar(
            services,
            settings,
            engine=engine,
            scraper=scraper,
            names=SidecarNames(options.pod, options.model),
            folders=lambda: download_folders(sidecar.settings),
        )
        if kv_events is not None:
            stack.push_async_callback(kv_events.close)
            kv_events.start()
        addresses = await stack.enter_async_context(
            serving_http(
                server,
                [(options.host, options.port)],
                hurry=lifecycle.hurry,
                tasks=tasks,
                grace_s=lambda: sidecar.settings.front.shutdown_grace_s,
                settings=("--host", "--port"),
            )
        )
        service = service or ServiceManager()
        service.start_pings(tasks)
        reloader = _build_reloader(options, sidecar)
        reloads = tasks.start(reload_on_request(lifecycle, reloader, service.reloading), name="reload")
        if settings.engines.config_watch:
            watching = watch_config(
                lambda: sidecar.settings.files,
                settings.signatures,
                lifecycle.reload_requested.set,
                clock=clock,
            )
            tasks.start(watching, name="watch-config")
        yield addresses
        reloads.cancel()
        lifecycle.state.set("stopping")
        # Waits for downloads and feeds about them would last for the whole grace period.
        await services.jobs.close()


async def serve(options: SidecarOptions, environ: Mapping[str, str], *, ends_with_terminal: bool) -> int:
    """Serve until SIGTERM or SIGINT; SIGHUP reloads the settings. Return the exit code."""
    held, service = hold_hangups(), from_environ()
    settings, problems = sidecar_settings(options, environ)
    learn_secrets(settings)
    logs.configure(level=settings.general.log_level, form=settings.general.log_format)
    lifecycle = Lifecycle([])
    try:
        async with AsyncExitStack() as stack:
            stack.enter_context(holding_state(settings.host.state_dir, what=SIDECAR))
            addresses = await stack.enter_async_context(
                running(options, settings, lifecycle=lifecycle, service=service)
            )
            handle_signals(lifecycle, held=held, ends_with_terminal=ends_with_terminal)
            service.ready(f"Serving on {', '.join(f'{host}:{port}' for host, port in addresses)}.")
            log.info(
                "sidecar",
                http=[f"{host}:{port}" for host, port in addresses],
                engine=options.engine,
                url=public_address(options.base_url),
                version=__version__,
            )
            for problem in problems:
                if problem.variable != "PROXY_HOST":
                    log.warning("notice", text=str(problem))
            if is_open_host(options.host) and not split_keys(settings.front.appliance_api_keys):
                log.warning("open_port", text=OPEN_PORT.format(port=addresses[0][1]))
            await lifecycle.stop_requested.wait()
            service.stopping()
    except OSError as exc:
        print(f"error: {exc}", file=sys.stderr)  # noqa: T201 - the log may be written elsewhere
        return 1
    log.info("stopped")
    return 0


def main(arguments: list[str]) -> int:
    """Run the verb; return the exit code."""
    import uvloop

    options = parse(arguments)
    ends_with_terminal = ignore_hangups()
    try:
        return uvloop.run(serve(options, os.environ, ends_with_terminal=ends_with_terminal))
    except InvalidSettings as exc:
        for problem in exc.problems:
            print(f"error: {problem}", file=sys.stderr)  # noqa: T201 - the log is not configured yet
        return os.EX_CONFIG
