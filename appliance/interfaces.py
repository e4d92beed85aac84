"""The doors, built from the parts that they open to: HTTP, the sidecar's addresses, control."""

from functools import partial
from typing import TYPE_CHECKING

from appliance.build import build_kv_events
from appliance.control.parts import ControlParts
from appliance.engines.backends.managed import ManagedBackend
from appliance.engines.backends.server import EngineServer as EngineServer
from appliance.engines.metrics.scrape import Engine, Following, Scraper
from appliance.engines.overview import Overview
from appliance.engines.types import BackendState
from appliance.front.balance import BalanceHandlers
from appliance.front.downloads import DownloadHandlers
from appliance.front.lora import LoraHandlers
from appliance.front.ollama.handlers import OllamaHandlers
from appliance.front.ollama.pull import PullHandlers
from appliance.front.openai.handlers import OpenAIHandlers
from appliance.front.openai.responses import ResponsesHandlers
from appliance.front.passthrough.passthrough import Passthrough
from appliance.front.pipeline.access import Access
from appliance.front.pipeline.access_log import AccessLog
from appliance.front.pipeline.pipeline import RequestPipeline
from appliance.front.pipeline.route import Route
from appliance.front.routes import join_routes
from appliance.front.server.server import HttpServer
from appliance.front.sidecar import SidecarHandlers, sidecar_groups, sidecar_routes
from appliance.front.system import SystemHandlers
from appliance.reload import Reloader

if TYPE_CHECKING:
    from appliance.app import Appliance
    from appliance.engines.kv.follower import KvFollower


def build_front(house: "Appliance", access_log: AccessLog) -> HttpServer:
    """Build the HTTP door with all its addresses."""
    settings, clock, router, manager = house.settings.front, house.clock, house.router, house.manager
    pipeline = house.pipeline = RequestPipeline(
        settings,
        receipts=house.receipts,
        metrics=house.metrics,
        access_log=access_log,
        clock=clock,
        state=house.lifecycle,
    )

    overview = Overview(router, latencies=house.metrics.latencies, tasks=house.tasks, clock=clock)
    system = SystemHandlers(
        status=house.status,
        metrics=house.metrics,
        receipts=house.receipts,
        measure=house.measure,
        engines=overview.families,
    )
    ollama = OllamaHandlers(
        router,
        clock=clock,
        manager=manager,
        library=house.library,
        pulls=PullHandlers(house.pulls, admit=partial(pipeline.admit, Access.OPERATOR)),
        heartbeat_s=pipeline.heartbeat_s,
    )
    balance = BalanceHandlers(router, clock=clock, set_strategy=house.fleet.set_strategy, manager=manager)
    routes = join_routes(
        system,
        balance,
        house.models_door,
        DownloadHandlers(house.jobs, folders=house.folders),
        LoraHandlers(house.lora_orders),
        OpenAIHandlers(router, heartbeat_s=pipeline.heartbeat_s, manager=manager),
        ResponsesHandlers(router, clock=clock, heartbeat_s=pipeline.heartbeat_s),
        ollama,
    )
    house.server = HttpServer(routes, pipeline, clock=clock, passthrough=Passthrough(router, pipeline))
    return house.server


def sidecar_table(house: "Appliance") -> tuple[list[Route], "KvFollower | None"]:
    """Give the addresses of SIDECAR_PORT: they are about the server that SIDECAR_BACKEND names, else about the first,
    else about the models that run here. Beside them who follows that server's KV events, not yet started; None = that is not wanted."""
    front = house.settings.front

    def server() -> EngineServer | None:
        wanted = front.sidecar_backend
        servers = (one for one in house.router.backends() if isinstance(one, EngineServer))
        return next((one for one in servers if not wanted or one.name == wanted), None)

    def engine() -> Engine | None:
        found = server()
        if found is None:  # models of our own: the first that is loaded
            found = next(
                (
                    one
                    for backend in house.router.backends()
                    if isinstance(backend, ManagedBackend)
                    for _, _, one in backend.runners()
                ),
                None,
            )
        return Engine(found.spec.url, found.kind, tuple(found.headers.items()), found.ssl) if found else None

    def state() -> BackendState | None:
        found = server()
        return (
            found.state()
            if found
            else next((one for one in house.router.states() if one.kind == "managed"), None)
        )

    def adapters() -> tuple[tuple[str, ...] | None, int]:
        found = server()
        return (loaded_adapters(found) if found else None), 0

    scraper = Following(
        engine,
        lambda one: Scraper(
            one.url,
            wire=house.scrape_wire,
            tasks=house.tasks,
            clock=house.clock,
            kind=one.kind,
            headers=dict(one.headers),
            ssl_context=one.ssl_context,
            timeout_s=house.settings.engines.request_timeout,
            adapters=adapters,
        ),
    )
    kv_events = build_kv_events(
        house.settings,
        lambda: found.kind if (found := server()) else None,
        pod=front.pod_name,
        model=front.sidecar_model,
        tasks=house.tasks,
        clock=house.clock,
    )
    groups = sidecar_groups(
        scraper,
        house.lora_orders,
        house.jobs,
        house.folders,
        clock=house.clock,
        more=kv_events.families if kv_events is not None else list,
    )
    return sidecar_routes(SidecarHandlers(state, pod=front.pod_name), *groups), kv_events


def loaded_adapters(server: EngineServer) -> tuple[str, ...] | None:
    """Name the adapters that a server has; None = it was not asked yet."""
    return tuple(card.id for card in server.cards() if card.parent) if server.has_facts else None


def control_parts(house: "Appliance", reloader: Reloader) -> ControlParts:
    return ControlParts(
        router=house.router,
        fleet=house.fleet,
        receipts=house.receipts,
        worker=house.worker,
        status=house.status,
        changed=house.changed,
        identity=house.identity,
        settings=reloader.described,
        reload=reloader.reload,
        drain=house.drain,
        resume=house.resume,
        shutdown=house.shutdown,
        lines=house.lines,
        pipeline=house.pipeline,
        is_draining=lambda: house.state != "serving",
        grace_s=lambda: house.settings.front.shutdown_grace_s if house.grace_s is None else house.grace_s,
        hurry=house.hurry,
        manager=house.manager,
        clock=house.clock,
        lora=house.lora_orders,
        jobs=house.jobs,
        folders=house.folders,
    )
