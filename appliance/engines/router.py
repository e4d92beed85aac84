"""The entry point of the engines: takes a request for a model, returns a reply, fills in the receipt.

routes.py decides what a name means, dispatch.py which backend answers, fleet.py which backends exist.
Passthrough and tunnels, which connect to a server themselves, use direct.py.
"""

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial

from appliance.base import jsons
from appliance.base.balancing import STRATEGIES
from appliance.base.clock import Clock
from appliance.base.errors import ApplianceError, Invalid, NoSuchModel, NotFound
from appliance.base.inline import in_task
from appliance.base.metrics.registry import Metrics
from appliance.base.sse import SSE_CONTENT_TYPE
from appliance.base.watch import Watched
from appliance.engines.backends.adapters import ADAPTER_NOT_LOADED, AdapterNotLoaded
from appliance.engines.backends.contract import Backend, BackendCallbacks, TokenCounter
from appliance.engines.direct import UP, DirectAccess
from appliance.engines.dispatch import Dispatcher
from appliance.engines.dispatch_request import DispatchRequest, hash_prompt_prefixes
from appliance.engines.outcome import Outcome
from appliance.engines.pool import Pool, Pools
from appliance.engines.routes import AdapterLookup, ModelRoute, Routes
from appliance.engines.settings import EngineSettings
from appliance.engines.stream import GeneratedStream
from appliance.engines.time_limited import answer_within
from appliance.engines.types import BackendState, EngineReply, EngineRequest, ModelCard
from appliance.engines.upstream.pacing import pace_response

WHOLE = 1 << 30  # characters: larger than any response
MAX_REROUTES = 5  # times that a request is routed again because its adapter was lost


async def _learn_nothing() -> None:
    """There are no servers to ask."""


class Router:
    """Route requests to backends. The fleet sets the pools (`set_pools`), also while requests run.

    Attributes:
        changed: Incremented when backends appear, disappear or change their status.
        dispatcher: Places requests on backends.
        direct: Slots for passthrough and tunnels.
    """

    def __init__(self, settings: EngineSettings, *, clock: Clock, metrics: Metrics) -> None:
        self.settings = settings
        self.changed: Watched[int] = Watched(0)
        self.dispatcher = Dispatcher(settings, clock=clock, metrics=metrics)
        self._clock = clock
        self._metrics = metrics
        self._pools = Pools()
        self._routes = Routes(self._pools, settings)
        self._learn: Callable[[], Awaitable[None]] = _learn_nothing
        self.direct = DirectAccess(self._pools, self._routes, self.dispatcher, clock=clock, metrics=metrics)

    # ---- the fleet's side

    @property
    def callbacks(self) -> BackendCallbacks:
        """What backends call while requests run; every backend is built with it."""
        return BackendCallbacks(self.dispatcher.serve_queues, self.notify_changed, self.refresh)

    @property
    def pools(self) -> list[Pool]:
        """The pools, in the order in which a name is searched in them."""
        return self._pools.all

    def apply(self, settings: EngineSettings) -> None:
        """Take new settings."""
        self.settings = settings
        self.dispatcher.apply(settings)
        self._routes.apply(settings)
        self.refresh()

    def set_pools(self, pools: list[Pool]) -> None:
        """Set the pools; waiting requests may be sent to them at once."""
        self._pools.all = pools
        self.refresh()
        self.dispatcher.serve_queues()

    def connect_learner(self, learn: Callable[[], Awaitable[None]]) -> None:
        """Set what asks every server for its models, in a short time, and not again if that was just done."""
        self._learn = learn

    def connect_adapters(self, adapters: AdapterLookup) -> None:
        """Set what knows the declared adapters; requests for one wait until a backend has it."""
        self._routes.connect_adapters(adapters)

    def reserve_adapter(self, name: str) -> None:
        """Let no other model answer under the name of an adapter."""
        self._routes.reserve_adapter(name)

    def refresh(self) -> None:
        """Clear what is cached: backends or their models changed."""
        self._pools.refresh()
        self._routes.refresh()
        self.notify_changed()

    def notify_changed(self) -> None:
        """Notify the followers of `changed`."""
        self.changed.set(self.changed.value + 1)

    # ---- what there is

    def backends(self) -> list[Backend]:
        """Return every backend, in the order of the pools."""
        return self._pools.backends()

    @property
    def is_demo(self) -> bool:
        """Whether the built-in demo engine is what answers."""
        return all(backend.is_demo for backend in self.backends())

    def cards(self) -> list[ModelCard]:
        """Return the models that are served, each once."""
        return self._routes.cards()

    def resolve(self, model: str) -> ModelCard:
        """Return the card of the model that a name means; "" = the default one.

        Raises:
            NoSuchModel: No backend serves it.
            Unavailable: There is no backend, or not all could be asked yet.
        """
        return self._routes.find(model).card

    def find_card(self, name: str) -> ModelCard | None:
        """Return the card of the model that has this name or alias; None = none has, MODEL_STRICT or not."""
        route = self._routes.find_named(name)
        return route.card if route is not None else None

    def states(self) -> list[BackendState]:
        """Return the state of every backend, from memory."""
        return [backend.describe() for backend in self.backends()]

    def state(self, name: str) -> BackendState:
        """Return the state of one backend.

        Raises:
            NotFound: There is none of that name.
        """
        return self._pools.backend(name).describe()

    def measure(self) -> None:
        """Bring every backend's gauges up to date."""
        for backend in self.backends():
            backend.measure()
        self._metrics.queue_length.set(self.dispatcher.waiting)

    # ---- strategy

    @property
    def strategy(self) -> str:
        """The strategy of the first pool, which most requests use."""
        return self.pools[0].balancer.strategy if self.pools else self.settings.lb_strategy

    def set_strategy(self, name: str, pool: str = "") -> None:
        """Switch the strategy of one pool, or of all; counters stay.

        Raises:
            Invalid: There is no such strategy.
            NotFound: There is no such pool.
        """
        if name not in STRATEGIES:
            raise Invalid(
                f"Invalid strategy {name[:80]!r}; there are {', '.join(STRATEGIES)}.",
                param="strategy",
                code="invalid_strategy",
            )
        pools = [one for one in self.pools if not pool or one.name == pool]
        if pool and not pools:
            known = ", ".join(one.name for one in self.pools)
            raise NotFound(f"There is no pool {pool[:200]!r}. Known: {known}.", code="no_such_pool")
        for one in pools:
            one.balancer.strategy = name
        self.notify_changed()

    # ---- requests

    async def answer(self, request: EngineRequest) -> EngineReply:
        """Answer a request; a whole response is cut into a stream if the client wants one.

        Returns:
            `body`, or `events` when `request.stream` (unless the reply is an error status).

        Raises:
            NoSuchModel: No backend serves the model.
            TimedOut: The time that the client allows is over.
            ApplianceError: What the dispatcher and the backends raise, see Dispatcher.answer.
        """
        if request.options.time_limit_s:
            return await answer_within(self._answer, request)
        return await self._answer(request)

    async def _answer(self, request: EngineRequest) -> EngineReply:
        settings, started_s = self.settings, self._clock.monotonic_s()
        deadline_s = started_s + settings.backend_timeout_seconds
        wait_until_s = min(started_s + settings.queue_timeout_s, deadline_s)
        for reroutes_left in range(MAX_REROUTES, -1, -1):
            try:
                dispatch_request = self._route(request, deadline_s)
            except AdapterNotLoaded as absent:
                dispatch_request = await self._route_when_loaded(request, deadline_s, wait_until_s, absent)
            except NoSuchModel:
                await self._learn_models()
                dispatch_request = self._route(request, deadline_s)
            try:
                if (billing := request.options.billing) is None:
                    reply = await self.dispatcher.answer(dispatch_request, request)
                else:
                    reply = await self.dispatcher.answer_billed(dispatch_request, request, billing)
                break
            except ApplianceError as error:
                if not reroutes_left or not await self._may_reroute(request, error):
                    raise
        if request.stream and reply.body is not None and reply.status == 200:
            return self._as_stream(reply.body, request)
        return reply

    async def count_tokens(self, request: EngineRequest) -> int | None:
        """Count the tokens of a chat's prompt, without a slot and without loading a model.

        Returns:
            None = no backend that would be asked first for the model can count them now.

        Raises:
            NoSuchModel: No backend serves the model.
            ApplianceError: What `Routes.find` raises.
        """
        try:
            route = self._find_route(request)
        except NoSuchModel:
            await self._learn_models()
            route = self._find_route(request)
        pin, now_s = request.options.pin, self._clock.monotonic_s()
        for backend in route.stages[0].serving(route.model):
            is_asked = not pin or backend.name == pin
            if not (is_asked and isinstance(backend, TokenCounter) and backend.status(now_s) in UP):
                continue
            tokens = await backend.count_tokens(route.model, request.body)
            if tokens is not None:
                request.receipt.backend = backend.name
                return tokens
        return None

    def _as_stream(self, body: bytes, request: EngineRequest) -> EngineReply:
        """Cut a whole response into a stream; UPSTREAM_STREAMING=relay: without pauses."""
        settings = self.settings
        is_paced = settings.upstream_streaming != "relay"
        stream_options = request.body.get("stream_options")
        events = pace_response(
            jsons.loads(body),
            size=settings.stream_chunk_size if is_paced else WHOLE,
            delay_ms=settings.stream_delay_ms if is_paced else 0,
            include_usage=isinstance(stream_options, dict) and bool(stream_options.get("include_usage")),
        )
        return EngineReply(events=GeneratedStream(events), content_type=SSE_CONTENT_TYPE)

    def _find_route(self, request: EngineRequest) -> ModelRoute:
        """Find the route of a request, and record it in the receipt.

        Raises:
            NoSuchModel: No backend serves the model.
            AdapterNotLoaded: It is for an adapter that no backend has at this moment.
        """
        receipt, options = request.receipt, request.options
        receipt.model, receipt.streamed = request.model, request.stream
        if options.pin:
            route = self._routes.find_pinned(options.pin, request.model)
        else:
            route = self._routes.find(request.model)
        request.wanted_model, request.public_model = route.model, route.card.id
        receipt.public_model, receipt.reason = route.card.id, route.reason
        return route

    def _route(self, request: EngineRequest, deadline_s: float) -> DispatchRequest:
        """Return what the dispatcher needs to place a request; raise as `_find_route` does."""
        route, receipt, options = self._find_route(request), request.receipt, request.options
        return DispatchRequest(
            stages=route.stages,
            model=route.model,
            reason=route.reason,
            options=options,
            receipt=receipt,
            deadline_s=deadline_s,
            hash_prefixes=partial(hash_prompt_prefixes, request),
            is_pinned=bool(options.pin),
        )

    async def _learn_models(self) -> None:
        """Let the servers be asked for their models before a client is told that there is no such model."""
        await in_task()
        await self._learn()

    async def _route_when_loaded(
        self, request: EngineRequest, deadline_s: float, wait_until_s: float, absent: AdapterNotLoaded
    ) -> DispatchRequest:
        """Route a request for an adapter that is being loaded: wait for that first.

        Raises:
            AdapterNotLoaded: No backend is expected to have it, or none had it in time.
        """
        started_s = self._clock.monotonic_s()
        try:
            while True:
                left_s = wait_until_s - self._clock.monotonic_s()
                if not absent.is_expected or left_s <= 0:
                    raise absent
                seen = (
                    self.changed.version
                )  # no await since it was found absent: nothing has changed in between
                await in_task()
                try:
                    async with asyncio.timeout(left_s):
                        await self.changed.newer(seen)
                except TimeoutError:
                    raise absent from None
                try:
                    return self._route(request, deadline_s)
                except AdapterNotLoaded as still:
                    absent = still
        finally:
            request.receipt.queue_ms += (self._clock.monotonic_s() - started_s) * 1000

    async def _may_reroute(self, request: EngineRequest, error: ApplianceError) -> bool:
        """Whether a request that failed has another route now.

        1. its adapter was lost                             → yes
        2. the server did not know the model's name         → if the name means another model, now that the
                                                              servers were asked: one was started again
        3. anything else                                    → no
        """
        if self._is_adapter_lost(request.wanted_model, error):  # 1
            return True
        attempts = request.receipt.attempts
        is_unknown = bool(attempts) and attempts[-1].outcome is Outcome.NOT_FOUND
        if not (is_unknown and isinstance(error, NoSuchModel)) or request.options.pin:  # 3
            return False
        await self._learn_models()  # 2
        try:
            return self._routes.find(request.model).model != request.wanted_model
        except ApplianceError:
            return False

    def _is_adapter_lost(self, model: str, error: ApplianceError) -> bool:
        """Whether a request failed because its adapter was lost: then it is routed again."""
        return error.code == ADAPTER_NOT_LOADED or (
            error.code == "no_backend"
            and self._routes.find_exact(model) is None
            and self._routes.find_absent(model) is not None
        )
