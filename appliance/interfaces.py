"""Build the interfaces from the parts of the appliance: HTTP server, sidecar addresses, control API."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from appliance import __version__
from appliance.base.errors import ApplianceError
from appliance.build import Services, build_kv_events
from appliance.build_ui import build_ui
from appliance.control.parts import ControlParts
from appliance.downloads.request import DownloadFolders
from appliance.engines.backends.managed import ManagedBackend
from appliance.engines.backends.server import EngineServer
from appliance.engines.metrics.scrape import CurrentScraper, Scraper, ScrapeTarget
from appliance.engines.overview import Overview
from appliance.engines.router import Router
from appliance.engines.types import BackendState
from appliance.front.anthropic.handlers import AnthropicHandlers
from appliance.front.balance import BalanceHandlers
from appliance.front.downloads import DownloadHandlers
from appliance.front.inner_calls import InnerCalls
from appliance.front.lora import LoraHandlers
from appliance.front.ollama.handlers import OllamaHandlers
from appliance.front.ollama.pull import PullHandlers
from appliance.front.openai.handlers import OpenAIHandlers
from appliance.front.openai.responses import ResponsesHandlers
from appliance.front.openapi.document import build_document
from appliance.front.openapi.handlers import OpenApiHandlers
from appliance.front.passthrough.passthrough import Passthrough
from appliance.front.pipeline.access import Access
from appliance.front.pipeline.access_tickets import AccessTickets
from appliance.front.pipeline.pipeline import RequestPipeline
from appliance.front.pipeline.route import Route, RouteGroup
from appliance.front.receipts import ReceiptHandlers
from appliance.front.routes import join_routes
from appliance.front.routes_text import served_sections
from appliance.front.server.server import HttpServer
from appliance.front.sidecar import DIALECT, SidecarHandlers, sidecar_groups, sidecar_routes
from appliance.front.system import SystemHandlers
from appliance.front.tickets import TicketHandlers
from appliance.parts import Appliance
from appliance.reload import Reloader
from appliance.settings import Settings

if TYPE_CHECKING:  # loaded only with GRPC_PORT, and where KV events are followed
    from appliance.control.gpuproxy.answers import AskHttp
    from appliance.engines.kv.follower import KvFollower

if TYPE_CHECKING:  # their libraries are loaded only with ACCOUNTS=1
    from appliance.build_accounts import Accounts
    from appliance.front.events.handlers import EventHandlers


def build_front(appliance: Appliance) -> HttpServer:
    """Build the HTTP server with all its addresses."""
    router, pipeline, clock = appliance.router, appliance.pipeline, appliance.clock
    manager, heartbeat_s = appliance.manager, pipeline.heartbeat_s

    tickets = AccessTickets(clock=clock)
    ui = build_ui(appliance) if appliance.settings.front.ui else None
    appliance.ui_feed = ui.feed if ui is not None else None
    overview = Overview(router, latencies=appliance.metrics.latencies, tasks=appliance.tasks, clock=clock)
    routes = join_routes(
        SystemHandlers(
            status=appliance.status,
            metrics=appliance.metrics,
            measure=appliance.measure,
            engines=overview.families,
            may_see_details=pipeline.may_see_details,
            is_operator=partial(_is_operator, pipeline),
        ),
        ReceiptHandlers(appliance.receipts, clock=clock),
        OpenApiHandlers(lambda: build_document(served_sections(routes), version=__version__)),
        TicketHandlers(
            tickets, find_access=lambda path: server.ticket_access(path), check=pipeline.check_access
        ),
        BalanceHandlers(
            router,
            clock=clock,
            set_strategy=appliance.fleet.set_strategy,
            manager=manager,
            may_see_details=pipeline.may_see_details,
            rented_loads=appliance.market.loads_of if appliance.market is not None else None,
            account_checks=shown.checks if (shown := appliance.account_status) is not None else dict,
        ),
        ui.handlers if ui is not None else None,
        *_account_groups(appliance, lambda: routes),
        *_market_groups(appliance),
        appliance.manager_handlers,
        DownloadHandlers(appliance.jobs, folders=appliance.folders),
        LoraHandlers(appliance.lora_orders),
        OpenAIHandlers(router, heartbeat_s=heartbeat_s, manager=manager, library=appliance.library),
        ResponsesHandlers(
            router, clock=clock, keep_s=appliance.settings.front.responses_keep_s, heartbeat_s=heartbeat_s
        ),
        AnthropicHandlers(router, heartbeat_s=heartbeat_s),
        OllamaHandlers(
            router,
            clock=clock,
            manager=manager,
            library=appliance.library,
            pulls=PullHandlers(appliance.pulls, admit=partial(pipeline.admit, Access.OPERATOR)),
            heartbeat_s=heartbeat_s,
            has_ui=ui is not None,
        ),
    )
    passthrough = Passthrough(router, pipeline, tickets=tickets)
    server = HttpServer(routes, pipeline, clock=clock, passthrough=passthrough, tickets=tickets)
    return server


def _market_groups(appliance: Appliance) -> list[RouteGroup]:
    """Return the groups of the markets; [] = MARKET is off, and nothing of them is imported."""
    market, accounts, proxy = appliance.market, appliance.accounts, appliance.proxy
    if market is None or accounts is None or proxy is None:
        return []
    from appliance.front.market.groups import build_market_groups
    from appliance.front.market.proxy import ProxyHandlers

    renting = build_market_groups(
        market.search, market.service, accounts.database, appliance.clock, count=market.status.count
    )
    return [*renting, ProxyHandlers(proxy)]


def _account_groups(appliance: Appliance, routes: Callable[[], list[Route]]) -> list[RouteGroup]:
    """Return the groups of accounts; [] = there are no accounts, and nothing of them is imported."""
    accounts = appliance.accounts
    if accounts is None:
        return []
    from appliance.front.accounts.groups import build_groups

    money = accounts.money
    appliance.event_handlers = _event_handlers(appliance, accounts, routes)
    groups = build_groups(accounts.identity, money.store, file_prices=lambda: money.file_prices)
    return [*groups, appliance.event_handlers]


def _event_handlers(
    appliance: Appliance, accounts: "Accounts", routes: Callable[[], list[Route]]
) -> "EventHandlers":
    """Build the addresses of events."""
    from appliance.front.events.chats import SocketChats
    from appliance.front.events.handlers import EventHandlers
    from appliance.front.events.snapshots import build_snapshots

    def chat_route() -> Route:
        return next(one for one in routes() if one.serves("POST") and one.fits("/v1/chat/completions"))

    view = appliance.account_status
    assert view is not None
    return EventHandlers(
        appliance.pipeline,
        accounts.events,
        SocketChats(appliance.pipeline, chat_route),
        snapshots=build_snapshots(accounts.identity, accounts.money.store),
        stats=partial(appliance.metrics.compatible_numbers, view.figures),
    )


def _is_operator(pipeline: RequestPipeline, headers: dict[str, str], peer: str) -> bool:
    """Whether a caller may call operator addresses, by the keys in force."""
    try:
        pipeline.check_access(Access.OPERATOR, headers, peer)
    except ApplianceError:
        return False
    return True


# ---- the sidecar's addresses


class SidecarEngine:
    """The engine that a sidecar's addresses are about.

    1. the server that is named
    2. without a name, the first server
    3. without any server, the first model that runs on this machine
    """

    def __init__(self, router: Router, name: str = "") -> None:
        self._router = router
        self._name = name

    def server(self) -> EngineServer | None:
        """Return the server; None = there is none, cases 1 and 2."""
        servers = (one for one in self._router.backends() if isinstance(one, EngineServer))
        return next((one for one in servers if not self._name or one.name == self._name), None)

    def kind(self) -> str | None:
        """Return the server's kind; None = there is none."""
        server = self.server()
        return server.kind if server else None

    def state(self) -> BackendState | None:
        """Return the state to report; None = there is nothing to report."""
        server = self.server()
        if server is not None:
            return server.describe()
        return next((one.describe() for one in self._router.backends() if one.is_managed), None)

    def adapters(self) -> tuple[tuple[str, ...] | None, int]:
        """Return (the adapters of the server, 0); None = they are not known yet."""
        server = self.server()
        if server is None or not server.models.has_facts:
            return None, 0
        return tuple(card.id for card in server.cards() if card.parent), 0

    def target(self) -> ScrapeTarget | None:
        """Return where its metrics are read; None = there is no engine."""
        found = self.server() or next(
            (
                runner
                for backend in self._router.backends()
                if isinstance(backend, ManagedBackend)
                for _, _, runner in backend.runners()
            ),
            None,
        )
        if found is None:
            return None
        return ScrapeTarget(
            found.spec.url, found.kind, headers=tuple(found.headers.items()), ssl_context=found.ssl
        )


@dataclass(frozen=True, slots=True)
class SidecarNames:
    """Names of the sidecar: `pod` is shown on /ready, both are used in the index of KV blocks; "" = none."""

    pod: str = ""
    model: str = ""


def build_sidecar(
    services: Services,
    settings: Settings,
    *,
    engine: SidecarEngine,
    scraper: Scraper | CurrentScraper,
    names: SidecarNames,
    folders: Callable[[], DownloadFolders],
) -> tuple[HttpServer, "KvFollower | None"]:
    """Build a server of the sidecar's addresses.

    Args:
        scraper: Reads the engine's metrics.
        folders: Returns the folders that downloads may go to.

    Returns:
        (the server, the follower of the engine's KV events, not yet started; None = they are not followed)
    """
    clock = services.clock
    kv_events = build_kv_events(
        settings, engine.kind, pod=names.pod, model=names.model, tasks=services.tasks, clock=clock
    )
    routes = sidecar_routes(
        SidecarHandlers(engine.state, pod=names.pod),
        *sidecar_groups(
            scraper,
            services.lora_orders,
            services.jobs,
            folders,
            clock=clock,
            more=kv_events.families if kv_events is not None else list,
        ),
    )
    return HttpServer(routes, services.pipeline, clock=clock, dialect=DIALECT), kv_events


def build_own_sidecar(appliance: Appliance) -> tuple[HttpServer, "KvFollower | None"]:
    """Build the server of SIDECAR_PORT; returns what `build_sidecar` returns."""
    front, services = appliance.settings.front, appliance.services
    engine = SidecarEngine(appliance.router, front.sidecar_backend)

    def scraper_of(target: ScrapeTarget) -> Scraper:
        return Scraper(
            target,
            wire=services.scrape_pool,
            tasks=services.tasks,
            clock=services.clock,
            timeout_s=appliance.settings.engines.request_timeout,
            adapters=engine.adapters,
        )

    return build_sidecar(
        services,
        appliance.settings,
        engine=engine,
        scraper=CurrentScraper(engine.target, scraper_of),
        names=SidecarNames(front.pod_name, front.sidecar_model),
        folders=appliance.folders,
    )


# ---- the control API


def control_parts(appliance: Appliance, reloader: Reloader) -> ControlParts:
    """Return the parts that the control API uses."""
    lifecycle = appliance.lifecycle
    return ControlParts(
        accounts=_account_service(appliance),
        router=appliance.router,
        fleet=appliance.fleet,
        receipts=appliance.receipts,
        worker=appliance.worker,
        status=appliance.status,
        changed=lifecycle.changed,
        identity=appliance.identity,
        settings=reloader.described,
        reload=reloader.reload,
        drain=lifecycle.drain,
        resume=lifecycle.resume,
        shutdown=lifecycle.shutdown,
        lines=appliance.lines,
        pipeline=appliance.pipeline,
        is_draining=lambda: not lifecycle.is_serving,
        grace_s=appliance.grace_s,
        hurry=lifecycle.hurry,
        manager=appliance.manager,
        clock=appliance.clock,
        lora=appliance.lora_orders,
        jobs=appliance.jobs,
        folders=appliance.folders,
    )


def gpuproxy_asker(server: HttpServer, appliance: Appliance) -> "AskHttp":
    """Return what the calls of GRPC_PORT ask the HTTP addresses with."""
    from appliance.control.gpuproxy.answers import HttpAnswer

    calls = InnerCalls(server.routes, appliance.pipeline)

    async def ask(method: str, path: str, **parts: Any) -> HttpAnswer:
        return HttpAnswer(*await calls.ask(method, path, **parts))

    return ask


def _account_service(appliance: Appliance) -> object | None:
    """Build what carries out the calls about accounts; None = there are no accounts."""
    accounts = appliance.accounts
    if accounts is None:
        return None
    from appliance.accounts.audit_log import Author  # loads the database's libraries
    from appliance.control.account_service import AccountService

    money = accounts.money
    return AccountService(
        accounts.identity, money.store, author=Author("operator"), file_prices=lambda: money.file_prices
    )
