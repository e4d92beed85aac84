"""All services together: in a process of their own, or inside a test.

async with running_twin(clock=FakeClock()) as twin:
    twin.urls["vast"]; twin.environ; twin.faults.add({…}); await twin.advance(60); twin.truth()
"""

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from appliance.base.clock import Clock, SystemClock, format_rfc3339
from appliance.base.listeners import describe_listen_error
from appliance.base.tasks import Tasks
from appliance.simulate.answers import TwinService
from appliance.simulate.chain import ChainService
from appliance.simulate.control import TwinControl
from appliance.simulate.faults import Faults
from appliance.simulate.fleet import RentedFleet
from appliance.simulate.ionet import IoNetService
from appliance.simulate.novita import NovitaService
from appliance.simulate.rented_engines import LOOPBACK, RentedEngines
from appliance.simulate.server import TwinServer
from appliance.simulate.stripe import StripeService
from appliance.simulate.twin_clock import TwinClock
from appliance.simulate.vast import VastService

SETTLE_EVERY_S = 0.25
CLOSE_S = 0.2


@dataclass(frozen=True, slots=True)
class TwinOptions:
    """How the twin behaves.

    Attributes:
        ports: Service → port, 0 = a free one; services that are not named do not run.
        credit_musd: What the account at each market has at the start.
        offers: How many offers vast.ai has.
        seed: Of the offers and of the faults' chances.
        created_s, loading_s: How long an instance is created, then loading, by the twin's clock.
        speed: Seconds of the twin's clock in one second.
        stripe_webhook: Where Stripe's events go, an address of this machine; "" = to registered endpoints.
    """

    ports: Mapping[str, int]
    credit_musd: int = 100_000_000
    offers: int = 64
    seed: int = 0
    created_s: float = 5.0
    loading_s: float = 25.0
    speed: float = 1.0
    stripe_webhook: str = ""


class Twin:
    """The services, their engines, their clock.

    Attributes:
        urls: Service → the address to configure.
        origins: Service → where it listens, `http://host:port`; /_truth and the others are there.
        ports: Service → its port.
        environ: The variables with which the appliance uses all of them.
        faults: What is to go wrong.
        clock: Its time.
    """

    def __init__(self, options: TwinOptions, clock: Clock) -> None:
        self.base_clock = clock
        self.clock = TwinClock(clock, speed=options.speed)
        self._routes: dict[str, frozenset[str]] = {}
        self.faults = Faults(self._routes, seed=options.seed)
        self.services = {name: _BUILDERS[name](self, options) for name in options.ports}
        for name, service in self.services.items():
            self._routes[name] = frozenset([*(route.name for route in service.routes()), *service.calls])
        self.origins: dict[str, str] = {}
        self.urls: dict[str, str] = {}
        self.ports: dict[str, int] = {}
        self.environ: dict[str, str] = {}
        self._engines = {name: RentedEngines(self.clock) for name in self._fleets()}

    def _fleets(self) -> dict[str, RentedFleet]:
        fleets = {name: getattr(service, "fleet", None) for name, service in self.services.items()}
        return {name: fleet for name, fleet in fleets.items() if fleet is not None}

    async def settle(self) -> None:
        """Bring everything up to the present time: instances, costs, engines."""
        for service in self.services.values():
            service.settle()
        for name, fleet in self._fleets().items():
            await self._engines[name].follow(fleet.live())

    async def advance(self, seconds: float) -> None:
        """Move the time on."""
        await self.settle()
        self.clock.advance(seconds)
        await self.settle()

    async def deliver(self) -> None:
        """Send Stripe's events that are due; not within a request, whose sender may be their receiver."""
        if isinstance(stripe := self.services.get("stripe"), StripeService):
            await stripe.deliver()

    def payers(self) -> dict[str, Callable[[dict[str, Any]], dict[str, Any]]]:
        """Return what `POST /_pay` calls, by service."""
        with_pay = (StripeService, ChainService)
        return {name: each.pay for name, each in self.services.items() if isinstance(each, with_pay)}

    def truth(self) -> dict[str, Any]:
        """Return what really is, ready for JSON; the engines as of the last `settle`."""
        for service in self.services.values():
            service.settle()
        services = {name: service.truth() for name, service in self.services.items()}
        markets = [services[name] for name in self._fleets()]
        return {
            "now": format_rfc3339(self.clock.now_s(), fraction_digits=3),
            "running": sum(market["running"] for market in markets),
            "live": sum(market["live"] for market in markets),
            "cost_musd": sum(market["cost_musd"] for market in markets),
            "cost_musd_per_h": sum(market["cost_musd_per_h"] for market in markets),
            "services": services,
        }

    async def listen(self, name: str, port: int, host: str, stack: AsyncExitStack) -> None:
        """Open the port of a service until the stack is closed.

        Raises:
            OSError: The port cannot be used; the text says why.
        """
        service = self.services[name]
        control = TwinControl(
            self.clock, self.faults, settle=self.settle, truth=self.truth, payers=self.payers()
        )
        server = TwinServer(
            service, self.faults, clock=self.clock, settle=self.settle, control=control.routes()
        )
        runner = web.AppRunner(
            server.application(), handle_signals=False, access_log=None, shutdown_timeout=CLOSE_S
        )
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        try:
            await web.TCPSite(runner, host, port).start()
        except OSError as exc:
            text = describe_listen_error(exc, host, port, settings=("--host", f"--{name}"))
            raise OSError(exc.errno, text) from exc
        self.ports[name] = int(runner.addresses[0][1])
        origin = f"http://{f'[{host}]' if ':' in host else host}:{self.ports[name]}"
        self.origins[name] = origin
        self.urls[name] = service.url(origin)
        self.environ |= service.environ(origin)

    async def close(self) -> None:
        """Stop the engines."""
        for engines in self._engines.values():
            await engines.close()
        if isinstance(stripe := self.services.get("stripe"), StripeService):
            await stripe.close()


def _build_vast(twin: Twin, options: TwinOptions) -> TwinService:
    return VastService(
        twin.clock,
        twin.faults,
        credit_musd=options.credit_musd,
        offers=options.offers,
        seed=options.seed,
        created_s=options.created_s,
        loading_s=options.loading_s,
    )


def _build_ionet(twin: Twin, options: TwinOptions) -> TwinService:
    return IoNetService(
        twin.clock,
        twin.faults,
        credit_musd=options.credit_musd,
        created_s=options.created_s,
        loading_s=options.loading_s,
    )


def _build_stripe(twin: Twin, options: TwinOptions) -> TwinService:
    return StripeService(twin.clock, twin.faults, signing=twin.base_clock, webhook_url=options.stripe_webhook)


_BUILDERS: dict[str, Callable[[Twin, TwinOptions], TwinService]] = {
    "vast": _build_vast,
    "ionet": _build_ionet,
    "novita": lambda twin, options: NovitaService(twin.clock, twin.faults),
    "stripe": _build_stripe,
    "chain": lambda twin, options: ChainService(twin.clock, twin.faults),
}
SERVICES = tuple(_BUILDERS)
ANY_PORTS: Mapping[str, int] = dict.fromkeys(SERVICES, 0)


@asynccontextmanager
async def running_twin(
    options: TwinOptions | None = None, *, clock: Clock | None = None, host: str = LOOPBACK
) -> AsyncIterator[Twin]:
    """Run the twin while the context is open.

    Args:
        options: None = all services, each on a free port.
        clock: Below its clock; None = the machine's.
        host: A loopback address.

    Raises:
        OSError: A port cannot be used; the text says why.
    """
    options = options or TwinOptions(ANY_PORTS)
    twin = Twin(options, clock or SystemClock())
    async with AsyncExitStack() as stack:
        stack.push_async_callback(twin.close)
        for name, port in options.ports.items():
            await twin.listen(name, port, host, stack)
        tasks = await stack.enter_async_context(Tasks())
        tasks.every(SETTLE_EVERY_S, twin.settle, name="twin")
        tasks.every(SETTLE_EVERY_S, twin.deliver, name="webhooks")
        yield twin
