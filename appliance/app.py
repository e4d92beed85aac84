"""Run the appliance: open its parts in order, close them in reverse order. Nothing is global."""

import ctypes
import gc
import os
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager

from appliance import __version__
from appliance.base import logs
from appliance.base.errors import describe_os_error
from appliance.base.file_looks import look_at_changes
from appliance.base.logs import get_logger
from appliance.base.settings import InvalidSettings
from appliance.build_models import add_manager, build_manager, build_no_models, build_runner_pool
from appliance.config_watch import watch_config
from appliance.control.server import serving_control
from appliance.front.manager.handlers import ManagerHandlers
from appliance.front.pipeline.origins import Origins
from appliance.front.server.server import HttpServer, serving_http
from appliance.front.status_listener import serving_status
from appliance.host.state_lock import holding_state
from appliance.interfaces import build_front, build_own_sidecar, control_parts, gpuproxy_asker
from appliance.machine import LOOPBACK_OF, open_machine, start_worker
from appliance.model_files import ModelFiles
from appliance.models.manager.watchdog import MEASURE_EVERY_S
from appliance.models.status.file import keeping_status_file
from appliance.models.status.measures import RequestStatistics
from appliance.models.table.library import ModelLibrary
from appliance.parts import Appliance
from appliance.reload import Reloader, reload_on_request
from appliance.service_manager import ServiceManager, from_environ
from appliance.settings import Settings, learn_secrets, load_or_raise
from appliance.signals import handle_signals, hold_hangups

log = get_logger("appliance")


@asynccontextmanager
async def running(
    settings: Settings, *, warnings: list[str] | None = None, service: ServiceManager | None = None
) -> AsyncIterator[Appliance]:
    """Open every part in order; close them in reverse order, also when one of them cannot be opened.

    0. accounts, where they are on: they close when everything that is paid for has ended
    1. models, since they are one of the backends
    2. backends, adapters, downloads
    3. the HTTP server, and the sidecar's port
    4. the machine: it needs the HTTP server's port
    5. the control API, then the worker, which may use both

    Args:
        warnings: Warnings about the settings; None = none.
        service: Is told of reloads that `lifecycle` asks for; None = there is no service manager.

    Raises:
        OSError: An address cannot be listened on; its text names it.
        ApplianceError: A part cannot be opened.
    """
    appliance = Appliance(settings, warnings or [])
    lifecycle = appliance.lifecycle
    configure_logs(settings, appliance)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(appliance.tasks)
        if settings.accounts.accounts:
            await open_users(appliance, stack)
        if settings.market.market:
            await open_renting(appliance, stack)
        await open_models(appliance, stack)  # 1
        await appliance.services.open(stack)  # 2
        await appliance.fleet.wait_first_probes()
        front = settings.front
        server = appliance.server = build_front(appliance)  # 3
        appliance.http_addresses = await stack.enter_async_context(
            serving_http(
                server,
                [(front.proxy_host, front.proxy_port)],
                hurry=lifecycle.hurry,
                tasks=appliance.tasks,
                grace_s=appliance.grace_s,
            )
        )
        await open_sidecar(appliance, stack)
        await open_machine(appliance, server, stack)  # 4
        worker = appliance.worker
        assert worker is not None
        reloader = Reloader(appliance)
        if settings.control.control:  # 5
            appliance.control_addresses = await stack.enter_async_context(
                serving_control(settings.control, control_parts(appliance, reloader))
            )
        if settings.accounts.accounts and settings.control.grpc_port:
            await open_gpuproxy_grpc(appliance, server, stack)
        stack.push_async_callback(worker.close)
        await start_worker(appliance, worker)
        lifecycle.set_state("serving")
        reporting = (service or ServiceManager()).reloading
        reloads = appliance.tasks.start(reload_on_request(lifecycle, reloader, reporting), name="reload")
        if settings.engines.config_watch:
            watching = watch_config(
                lambda: appliance.settings.files,
                settings.signatures,
                lifecycle.reload_requested.set,
                clock=appliance.clock,
            )
            appliance.tasks.start(watching, name="watch-config")
        try:
            yield appliance
        finally:
            reloads.cancel()
            lifecycle.set_state("stopping")
            await close_feeds(appliance)


async def open_gpuproxy_grpc(appliance: Appliance, server: HttpServer, stack: AsyncExitStack) -> None:
    """Serve the gRPC API of aiserve-gpuproxyd at GRPC_PORT.

    Raises:
        OSError: The address cannot be used.
    """
    from appliance.control.gpuproxy.server import serving_gpuproxy  # loaded with GRPC_PORT alone

    lifecycle = appliance.lifecycle
    address = await stack.enter_async_context(
        serving_gpuproxy(
            appliance.settings.control,
            gpuproxy_asker(server, appliance),
            clock=appliance.clock,
            is_serving=lambda: lifecycle.is_serving,
            grace_s=appliance.grace_s,
        )
    )
    appliance.control_addresses.append(address)


async def open_users(appliance: Appliance, stack: AsyncExitStack) -> None:
    """Open the accounts, and let the pipeline ask them.

    Raises:
        OSError: The database cannot be used as it is.
    """
    from appliance.account_status import AccountStatus
    from appliance.build_accounts import open_accounts  # loads the database's libraries

    appliance.accounts = accounts = await open_accounts(
        appliance.settings, stack, clock=appliance.clock, tasks=appliance.tasks
    )
    appliance.pipeline.use_accounts(accounts.gate)
    appliance.account_status = view = AccountStatus(
        accounts, appliance.pipeline, clock=appliance.clock, started_s=appliance.started_s
    )
    appliance.metrics.use_accounts(view.figures)


async def open_renting(appliance: Appliance, stack: AsyncExitStack) -> None:
    """Open renting of GPUs and the proxy, which need accounts (the settings' checks make sure of them)."""
    from appliance.build_market import open_market  # loaded with MARKET=1 alone
    from appliance.build_proxy import build_proxy

    assert appliance.accounts is not None
    assert appliance.account_status is not None
    appliance.market = market = await open_market(
        appliance.settings.market,
        appliance.accounts,
        stack,
        clock=appliance.clock,
        tasks=appliance.tasks,
        strategy=lambda: appliance.router.strategy,
    )
    appliance.account_status.add_checks(market.status.checks)
    appliance.metrics.use_market(market.status.figures)
    appliance.proxy = build_proxy(
        appliance.settings,
        appliance.accounts.database,
        clock=appliance.clock,
        tasks=appliance.tasks,
        instances=market.addresses,
    )
    stack.push_async_callback(appliance.proxy.close)


async def open_models(appliance: Appliance, stack: AsyncExitStack) -> None:
    """Open the status listener, and the model manager where models can be run here."""
    settings, tasks, clock = appliance.settings, appliance.tasks, appliance.clock
    own, state_dir = settings.models, settings.host.state_dir
    if own.status_port is not None:
        await stack.enter_async_context(
            serving_status(
                lambda: appliance.manager or appliance.no_models,
                host=own.status_host,
                port=own.status_port,
                clock=clock,
                origins=Origins(settings.front),
            )
        )
    wire = build_runner_pool(settings.catalogue.system)
    stack.push_async_callback(wire.close)
    statistics = RequestStatistics(appliance.metrics.router)
    manager = build_manager(settings, tasks=tasks, clock=clock, wire=wire, statistics=statistics)
    appliance.manager = manager
    if manager is None:
        await open_no_models(appliance)
        return
    appliance.library = ModelLibrary(
        lambda: manager.catalogue.models, tasks=tasks, digests_path=state_dir / "digests.json"
    )
    status_path = state_dir / "model_status.json"
    await stack.enter_async_context(keeping_status_file(manager, status_path, tasks=tasks))
    stack.push_async_callback(manager.close)
    appliance.adapters.prepare(manager)
    await manager.open()
    appliance.manager_handlers = ManagerHandlers(
        manager, clock=clock, status_path=status_path, gpu=appliance.gpu
    )
    add_manager(
        appliance.fleet, manager, settings, wire=wire, clock=clock, metrics=appliance.metrics, tasks=tasks
    )
    if own.model_files_look_s:
        files, every_s = ModelFiles(appliance, manager, own.model_files_look_s), own.model_files_look_s
        looking = look_at_changes(files.look, what="model files", every_s=every_s, clock=clock)
        tasks.start(looking, name="look-at-model-files")


async def open_no_models(appliance: Appliance) -> None:
    """Let the addresses about models answer where none are run."""
    clock = appliance.clock
    appliance.no_models = no_models = build_no_models(appliance.settings, clock=clock)
    await no_models.measure()
    appliance.tasks.every(MEASURE_EVERY_S, no_models.measure, name="measure-memory")
    appliance.manager_handlers = ManagerHandlers(no_models, clock=clock, gpu=appliance.gpu)


async def open_sidecar(appliance: Appliance, stack: AsyncExitStack) -> None:
    """Open SIDECAR_PORT where it is set, and follow its engine's KV events where they are wanted."""
    front = appliance.settings.front
    if front.sidecar_port is None:
        return
    server, kv_events = build_own_sidecar(appliance)
    if kv_events is not None:
        stack.push_async_callback(kv_events.close)
        kv_events.start()
    await stack.enter_async_context(
        serving_http(
            server,
            [(front.sidecar_host, front.sidecar_port)],
            hurry=appliance.lifecycle.hurry,
            tasks=appliance.tasks,
            grace_s=lambda: 0.0,  # the interfaces that close before it have waited for their requests
            settings=("SIDECAR_HOST", "SIDECAR_PORT"),
        )
    )


async def close_feeds(appliance: Appliance) -> None:
    """End waits for downloads, feeds about models and events, which would last for the whole grace period."""
    await appliance.jobs.close()
    appliance.receipts.close()
    if appliance.ui_feed is not None:
        appliance.ui_feed.close()
    for manager in (appliance.manager, appliance.no_models):
        if manager is not None:
            manager.announce_shutdown()
    if appliance.manager_handlers is not None:
        appliance.manager_handlers.close()
    if appliance.event_handlers is not None:
        appliance.event_handlers.close()


# ---- the process


async def serve(environ: Mapping[str, str] | None = None, *, ends_with_terminal: bool = False) -> int:
    """Serve until SIGTERM, SIGINT or control's Shutdown; SIGHUP reloads the settings.

    Args:
        environ: Where the settings are read from; None = os.environ.
        ends_with_terminal: Whether SIGHUP stops it when its terminal is gone.

    Returns:
        The exit code: 0; 1 when it cannot listen on an address, another one uses its STATE_DIR, or a
        background task died; 78 for invalid settings.
    """
    held, service = hold_hangups(), from_environ()
    settings, problems = load_or_raise(environ)
    warnings = [str(problem) for problem in problems]
    logs.configure(level=settings.general.log_level, form=settings.general.log_format)
    try:
        async with AsyncExitStack() as stack:
            stack.enter_context(holding_state(settings.host.state_dir))
            appliance = await stack.enter_async_context(running(settings, warnings=warnings, service=service))
            handle_signals(appliance.lifecycle, held=held, ends_with_terminal=ends_with_terminal)
            service.start_pings(appliance.tasks)
            service.ready(f"Serving on {', '.join(f'{h}:{p}' for h, p in appliance.http_addresses)}.")
            announce(appliance)
            settle_memory()
            await appliance.lifecycle.stop_requested.wait()
            service.stopping()
            log.info("stopping", grace_s=appliance.grace_s())
        log.info("stopped")
        return appliance.lifecycle.exit_code
    except InvalidSettings as exc:
        for problem in exc.problems:
            print(f"error: {problem}", file=sys.stderr)  # noqa: T201 - the log is not configured yet
        return os.EX_CONFIG
    except OSError as exc:
        log.error("cannot_start", reason=describe_os_error(exc))
        return 1


def settle_memory() -> None:
    """Exempt the objects of the start from garbage collection; run it rarely: requests make few cycles."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)
    try:
        ctypes.CDLL(None).malloc_trim(0)  # return freed memory of the start to the system (glibc)
    except (AttributeError, OSError):
        pass


def configure_logs(settings: Settings, appliance: Appliance) -> None:
    """Set up the log: its level and form, the secrets that it hides, the copy for the control API."""
    learn_secrets(settings)
    logs.configure(
        level=settings.general.log_level,
        form=settings.general.log_format,
        on_line=lambda line: appliance.lines.add(appliance.clock.now_s(), "appliance", line),
    )


def announce(appliance: Appliance) -> None:
    """Log where the appliance listens and what it warns of; with the demo engine, print commands to try."""
    log.info(
        "serving",
        http=[f"{h}:{p}" for h, p in appliance.http_addresses],
        control=appliance.control_addresses,
        demo=appliance.router.is_demo,
        model=next((card.id for card in appliance.router.cards()), ""),
        version=__version__,
    )
    for warning in appliance.lifecycle.warnings:
        log.warning("notice", text=warning)
    if not appliance.router.is_demo:
        return
    log.warning(
        "demo_engine",
        text="The built-in demo engine answers; there is no model behind it. Set MODEL_DIR for model files, "
        "BACKENDS for engines that run, CONFIG_PATH for a table of both, NOVITA_API_KEY for the hosted API.",
    )
    host, port = appliance.http_addresses[0]
    host = "127.0.0.1" if host in LOOPBACK_OF else host
    needs_key = appliance.accounts is not None or bool(appliance.settings.front.appliance_api_keys)
    print(commands_to_try(f"http://{host}:{port}", needs_key=needs_key), file=sys.stderr)  # noqa: T201


def commands_to_try(base: str, *, needs_key: bool) -> str:
    """Return the commands that are shown to the person at the terminal, when the demo engine answers.

    Args:
        base: The address of the HTTP server.
        needs_key: Whether requests without a key are refused.
    """
    key = "-H 'authorization: Bearer KEY' " if needs_key else ""
    note = ", with a key of yours for KEY" if needs_key else ""
    return f"""
The demo engine answers every model. Three commands to try{note}:

  curl {base}/v1/chat/completions {key}-H 'content-type: application/json' \\
       -d '{{"messages": [{{"role": "user", "content": "Hello"}}]}}'
  curl -N {base}/api/chat {key}-d '{{"model": "demo", "messages": [{{"role": "user", "content": "Hello"}}]}}'
  curl {base}/healthz
"""
