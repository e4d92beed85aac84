"""The one entrance to the engines: a model's name → a route → a reply, with the story in the receipt.

What a name means is decided here, who answers it in dispatch.py, which backends there are in fleet.py.
"""

import asyncio
import difflib
from collections.abc import Callable, Collection
from functools import partial

from appliance.base import jsons
from appliance.base.balancing import STRATEGIES
from appliance.base.clock import Clock
from appliance.base.errors import ApplianceError, Invalid, NoSuchModel, NotFound, Unavailable
from appliance.base.metrics.registry import Metrics
from appliance.base.sse import SSE_CONTENT_TYPE
from appliance.base.watch import Watched
from appliance.engines.backends.adapters import CODE, AdapterNotLoaded
from appliance.engines.backends.contract import Backend
from appliance.engines.backends.server import EngineServer
from appliance.engines.dispatch import Dispatcher
from appliance.engines.dispatch_request import DispatchRequest, hash_prompt_prefixes
from appliance.engines.outcome import Outcome
from appliance.engines.pool import Pool
from appliance.engines.receipts import Receipt
from appliance.engines.settings import EngineSettings
from appliance.engines.slots import Slot
from appliance.engines.stream import GeneratedStream
from appliance.engines.types import (
    NO_OPTIONS,
    BackendState,
    BackendStatus,
    EngineReply,
    EngineRequest,
    ModelCard,
    RequestOptions,
)
from appliance.engines.upstream.pacing import paced

WHOLE = 1 << 30  # characters: larger than any answer
NEAR_NAMES = 3
MOST_RETURNS = 5  # of a request to the line, because the adapter that it is for was lost


class Router:
    """Chooses who answers. The fleet puts pools into it (`set_pools`), also while requests run."""

    def __init__(self, settings: EngineSettings, *, clock: Clock, metrics: Metrics) -> None:
        self.settings = settings
        self._clock = clock
        self._metrics = metrics
        self.dispatcher = Dispatcher(settings, clock=clock, metrics=metrics)
        self.pools: list[Pool] = []
        self.changed: Watched[int] = Watched(0)  # rises when backends come, go or change their standing
        self.absent: Callable[[str], AdapterNotLoaded | None] = lambda _: (
            None
        )  # of a declared adapter that nobody has at the moment: why
        self._cards: list[ModelCard] | None = None
        self._routes: dict[str, tuple[list[Pool], str, ModelCard, str]] = {}

    # ---- the fleet's side

    def apply(self, settings: EngineSettings) -> None:
        self.settings = settings
        self.dispatcher.apply(settings)
        self.refresh()

    def set_pools(self, pools: list[Pool]) -> None:
        """Put pools in place, in the order in which a name is looked for in them."""
        self.pools = pools
        for backend in self.backends():
            backend.on_capacity = self._on_capacity
        self.refresh()
        self._on_capacity(None)

    def refresh(self) -> None:
        """Backends or their models changed."""
        self._cards = None
        self._routes = {}
        for pool in self.pools:
            pool.refresh()
        self.notify_changed()

    def notify_changed(self) -> None:
        self.changed.set(self.changed.value + 1)

    def _on_capacity(self, backend: Backend | None) -> None:
        self.dispatcher.serve_queues()

    # ---- what there is

    def backends(self) -> list[Backend]:
        return [backend for pool in self.pools for backend in pool.backends]

    def server_names(self) -> list[str]:
        """Name the backends that are servers of their own (which passage can reach)."""
        return [backend.name for backend in self._servers()]

    def has_servers(self) -> bool:
        return any(True for _ in self._servers())

    def _servers(self) -> list[Backend]:
        return [backend for backend in self.backends() if backend.kind not in {"hosted", "demo"}]

    def is_managed(self, model: str) -> bool:
        """Whether a model of the table is named, whose llama-server the manager starts and stops."""
        return any(
            backend.kind == "managed" and backend.find_model(model) is not None for backend in self.backends()
        )

    @property
    def is_demo(self) -> bool:
        """Whether the built-in demo engine is what answers."""
        return all(b.kind == "demo" for b in self.backends())

    def cards(self) -> list[ModelCard]:
        """List the models that are served, each once; the first one is the default."""
        if self._cards is None:
            self._cards = list(
                {
                    card.id: card
                    for backend in reversed(self.backends())
                    for card in reversed(backend.cards())
                }.values()
            )[::-1]
        return self._cards

    def states(self) -> list[BackendState]:
        return [backend.state() for backend in self.backends()]

    def state(self, name: str) -> BackendState:
        return self._backend(name).state()

    def measure(self) -> None:
        """Bring every backend's gauges up to date."""
        for backend in self.backends():
            backend.measure()
        self._metrics.queue_length.set(self.dispatcher.waiting)

    def _backend(self, name: str) -> Backend:
        for backend in self.backends():
            if backend.name == name:
                return backend
        raise NotFound(
            f"There is no backend {name[:200]!r}. Known: {', '.join(b.name for b in self.backends()) or 'none'}.",
            code="no_such_backend",
        )

    # ---- strategy

    @property
    def strategy(self) -> str:
        """The strategy of the first pool: the one that most requests see."""
        return self.pools[0].balancer.strategy if self.pools else self.settings.lb_strategy

    def set_strategy(self, name: str, pool: str = "") -> None:
        """Switch the strategy of one pool, or of all; counters stay.

        Raises  Invalid: no such strategy · NotFound: no such pool
        """
        if name not in STRATEGIES:
            raise Invalid(
                f"Invalid strategy {name[:80]!r}; there are {', '.join(STRATEGIES)}.",
                param="strategy",
                code="invalid_strategy",
            )
        pools = [p for p in self.pools if not pool or p.name == pool]
        if pool and not pools:
            raise NotFound(
                f"There is no pool {pool[:200]!r}. Known: {', '.join(p.name for p in self.pools)}.",
                code="no_such_pool",
            )
        for one in pools:
            one.balancer.strategy = name
        self.notify_changed()

    # ---- what a name means

    def resolve(self, model: str) -> ModelCard:
        """Give the card of the model that `model` means ("" = the default one).

        Raises  NoSuchModel: nobody serves it · Unavailable: there is no backend, or not all could be asked yet
        """
        return self._route(model)[2]

    def _route(self, model: str) -> tuple[list[Pool], str, ModelCard, str]:
        """Give (stages, the name that backends know, card, reason) of a name; found ones are remembered until something changes."""
        found = self._routes.get(model)
        if found is None:
            found = self._find(model)
            if len(self._routes) >= 4096:  # names come from clients
                self._routes = {}
            self._routes[model] = found
        return found

    def _find(self, model: str) -> tuple[list[Pool], str, ModelCard, str]:
        """Look a name up.

        1. no name                                → the default: the first model there is
        2. a model or an alias by its very name   → the first pool that serves it
        3. `name=model` of MODEL_ALIASES          → that model
        4. the same without `:latest`             → the same
        5. an adapter that is declared, and that nobody has loaded yet → NotLoaded: nobody else may answer in its place
        6. a backend that answers any name        → that one
        7. nobody                                 → an error, with near names
        """
        if not model:  # 1
            for pool in self.pools:
                for backend in pool.backends:
                    if cards := backend.cards():
                        return self._stages(pool), cards[0].id, cards[0], "no model named"
        if (found := self._exact(model)) is not None:  # 2
            return found
        aliases = dict(alias.split("=", 1) for alias in self.settings.model_aliases if "=" in alias)
        if model in aliases and (found := self._exact(aliases[model])) is not None:  # 3
            return (*found[:3], "alias")
        plain = model.removesuffix(":latest")
        if plain != model:  # 4
            if (found := self._exact(plain)) is not None:
                return found
            if plain in aliases and (found := self._exact(aliases[plain])) is not None:
                return (*found[:3], "alias")
        for name in (model, plain, aliases.get(model), aliases.get(plain)):  # 5
            if name and (absent := self.absent(name)) is not None:
                raise absent
        for pool in self.pools:
            for backend in pool.backends:
                if model and backend.find_model(model) is not None:  # 6
                    return self._stages(pool), model, backend.cards()[0], "default"
        raise self._unknown(model)  # 7

    def _exact(self, model: str) -> tuple[list[Pool], str, ModelCard, str] | None:
        for pool in self.pools:
            for backend in pool.backends:
                for card in backend.cards():
                    if model == card.id or model in card.aliases:
                        return self._stages(pool), model, card, "model" if model == card.id else "alias"
        return None

    def _stages(self, pool: Pool) -> list[Pool]:
        """Give a pool and those that it overflows into, in order."""
        stages = [pool]
        while stages[-1].overflow:
            following = next((p for p in self.pools if p.name == stages[-1].overflow), None)
            if following is None or following in stages:
                break
            stages.append(following)
        return stages

    def _unknown(self, model: str) -> NoSuchModel | Unavailable:
        if not self.backends():
            return Unavailable("No backend is configured. Set BACKENDS or NOVITA_API_KEY.")
        unseen = [b.name for b in self._servers() if getattr(b, "is_unknown", bool)()]
        if unseen:
            return Unavailable(
                f"No known backend serves {model!r}, and {', '.join(unseen[:8])} could not be asked yet."
                if model
                else f"No backend available: {', '.join(unseen[:8])} could not be asked yet.",
                code="no_backend",
                retry_after_s=2,
            )
        names = [card.id for card in self.cards()]
        near = difflib.get_close_matches(model, names, n=NEAR_NAMES, cutoff=0.5)
        hint = f"Did you mean {' or '.join(repr(name) for name in near)}? " if near else ""
        known = ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
        return NoSuchModel(
            f"The model {model[:200]!r} does not exist here. {hint}Known: {known}.", param="model"
        )

    # ---- answering

    async def answer(self, request: EngineRequest) -> EngineReply:
        """Answer `request`; if a stream was asked for and the answer came in one piece, pace it out.

        Gives   EngineReply: `body`, or `events` when `request.stream` (unless the reply is an error status)
        Raises  what the dispatcher and the backends raise (see Dispatcher.answer) · NoSuchModel
        """
        settings, began_s = self.settings, self._clock.monotonic_s()
        patient_until_s = began_s + min(settings.queue_timeout_s, settings.backend_timeout_seconds)
        for left in range(MOST_RETURNS, -1, -1):
            try:
                asking = self._asking(request, began_s + settings.backend_timeout_seconds)
            except AdapterNotLoaded as absent:
                asking = await self._asking_later(
                    request, began_s + settings.backend_timeout_seconds, patient_until_s, absent
                )
            try:
                reply = await self.dispatcher.answer(asking, request)
                break
            except ApplianceError as error:
                if not left or not self._is_lost(request.wanted_model, error):
                    raise
        if request.stream and reply.body is not None and reply.status == 200:
            stream_options = request.body.get("stream_options")
            include_usage = isinstance(stream_options, dict) and bool(stream_options.get("include_usage"))
            is_paced = (
                settings.upstream_streaming != "relay"
            )  # relay: no artificial pauses, the one piece goes at once
            events = paced(
                jsons.loads(reply.body),
                size=settings.stream_chunk_size if is_paced else WHOLE,
                delay_ms=settings.stream_delay_ms if is_paced else 0,
                include_usage=include_usage,
            )
            return EngineReply(events=GeneratedStream(events), content_type=SSE_CONTENT_TYPE)
        return reply

    def _asking(self, request: EngineRequest, deadline_s: float) -> DispatchRequest:
        """Route a request.

        Raises  NoSuchModel · NotLoaded: it is for an adapter that nobody has at this moment
        """
        receipt, options = request.receipt, request.options
        stages, wanted, card, reason = (
            self._pinned(options.pin, request.model) if options.pin else self._route(request.model)
        )
        request.wanted_model, request.public_model = wanted, card.id
        receipt.model, receipt.public_model, receipt.reason = request.model, card.id, reason
        receipt.streamed = request.stream
        return DispatchRequest(
            stages,
            wanted,
            reason,
            options,
            receipt,
            deadline_s,
            partial(hash_prompt_prefixes, request),
            is_pinned=bool(options.pin),
        )

    async def _asking_later(
        self, request: EngineRequest, deadline_s: float, patient_until_s: float, absent: AdapterNotLoaded
    ) -> DispatchRequest:
        """Route a request for an adapter that is just being loaded: wait for that first."""
        began_s = self._clock.monotonic_s()
        try:
            while True:
                left_s = patient_until_s - self._clock.monotonic_s()
                if not absent.is_coming or left_s <= 0:
                    raise absent
                seen = self.changed.version  # nothing can have changed since it was found absent
                try:
                    async with asyncio.timeout(left_s):
                        await self.changed.newer(seen)
                except TimeoutError:
                    raise absent from None
                try:
                    return self._asking(request, deadline_s)
                except AdapterNotLoaded as still:
                    absent = still
        finally:
            request.receipt.queue_ms += (self._clock.monotonic_s() - began_s) * 1000

    def _is_lost(self, wanted: str, error: ApplianceError) -> bool:
        """Whether a request failed because its adapter is not where it was: then it may wait until it is again, or go where it is."""
        return error.code == CODE or (
            error.code == "no_backend" and self._exact(wanted) is None and self.absent(wanted) is not None
        )

    def _pinned(self, name: str, model: str) -> tuple[list[Pool], str, ModelCard, str]:
        """Give the route to one backend; without a model's name to its first.

        Raises  NotFound: no such backend · NoSuchModel: it does not serve the model
        """
        backend = self._backend(name)
        pool = next(p for p in self.pools if backend in p.backends)
        cards = backend.cards()
        wanted = model or (cards[0].id if cards else "")
        if model:
            wanted = self._route(model)[1]
        served = backend.find_model(wanted)
        if served is None:
            raise NoSuchModel(
                f"The backend {name!r} does not serve the model {model[:200]!r}. It serves: {', '.join(c.id for c in cards)}.",
                param="model",
            )
        return [pool], wanted, served.card, "pinned"

    # ---- for those who speak to a server themselves

    async def lease(
        self,
        *,
        receipt: Receipt,
        model: str = "",
        exclude: Collection[str] = (),
        options: RequestOptions = NO_OPTIONS,
        is_uncounted: bool = False,
    ) -> Slot[Backend]:
        """Give the right to send one request to one server (passage).

        Takes   model: only servers of it ("" = any server); exclude: servers not to use; wishes.pin: the server's name;
                is_uncounted: a question that needs none of its slots, asked also while it is full (and, if pinned, whatever its state)
        Gives   a place with url, headers and ssl; its `done` must be called in any case
        Raises  NotFound: no such server · NoSuchModel · Unavailable · Exhausted
        """
        stages, wanted, reason = self._servers_for(model, options.pin, receipt)
        if (
            is_uncounted
            and not self.is_managed(model)
            and (slot := self._visit(stages, wanted, options, exclude)) is not None
        ):
            receipt.reason = reason
        else:
            closed = {
                b.name for b in self.backends() if b.kind in {"hosted", "demo"}
            }  # not to be reached directly
            closed |= self._mute_for(wanted) if wanted else set()
            if (
                wanted is None
                and not options.pin
                and any(isinstance(b, EngineServer) for b in self.backends())
            ):
                closed |= {
                    b.name for b in self.backends() if b.kind == "managed"
                }  # loading a model for a question that names none
            asking = DispatchRequest(
                stages,
                wanted,
                reason,
                options,
                receipt,
                self._clock.monotonic_s() + self.settings.backend_timeout_seconds,
                tried={*exclude, *closed},
                is_pinned=bool(options.pin),
            )
            slot = await self.dispatcher.take_slot(asking)
            try:
                await slot.backend.prepare_passthrough(slot, wanted, options)
            except BaseException:
                slot.release(Outcome.CANCELLED)
                raise
        if not exclude:
            self.dispatcher.retry_budget.deposit()
        receipt.backend, receipt.endpoint = slot.backend.name, slot.url
        receipt.attempts.append(slot.attempt)
        return slot

    def _mute_for(self, wanted: str) -> set[str]:
        """Name the servers on which an adapter is asked for by more than its name: passage changes no body, and their base model would answer.

        Raises  Invalid: there are only such
        """
        own = [
            (b.name, served)
            for b in self.backends()
            if b.kind != "managed" and (served := b.find_model(wanted)) is not None
        ]
        mute = {
            name for name, served in own if served.card.parent and (served.extra or served.upstream != wanted)
        }
        if mute and len(mute) == len(own):
            raise Invalid(
                f"{wanted!r} is an adapter that this address cannot ask for: it answers chats and completions of the OpenAI, Ollama and "
                "Responses addresses. Here, name its model, and the adapter as the engine wants it.",
                param="model",
                code="not_supported",
            )
        return mute

    def may_retry_elsewhere(self, reason: str) -> bool:
        """Whether a request that a server failed may go to another one: as long as the retry budget lasts."""
        if not self.dispatcher.retry_budget.withdraw():
            return False
        self._metrics.retries.labels(reason).inc()
        return True

    def _servers_for(self, model: str, pin: str, receipt: Receipt) -> tuple[list[Pool], str | None, str]:
        """Give (stages with servers in them, the model's name among backends, reason)."""
        servers = {id(b) for b in self._servers()}
        wanted: str | None = None
        if pin:
            backend = self._backend(pin)
            if id(backend) not in servers:
                raise NotFound(
                    f"The backend {pin[:200]!r} is no server that can be reached directly.",
                    code="no_such_backend",
                )
            return (
                [next(p for p in self.pools if backend in p.backends)],
                model if backend.kind == "managed" and model else None,
                "pinned",
            )
        stages, reason = self.pools, "any"
        if model:
            stages, wanted, card, reason = self._route(model)
            receipt.model, receipt.public_model = model, card.id
        stages = [p for p in stages if any(id(b) in servers for b in p.backends)]
        if not stages:
            raise Unavailable(
                "No backend here can be reached directly: the model is served by a hosted API.",
                code="no_backend",
            )
        return stages, wanted, reason

    def _visit(
        self, stages: list[Pool], model: str | None, options: RequestOptions, exclude: Collection[str]
    ) -> Slot[Backend] | None:
        """Give a visit to a server: the pinned one, else the least busy one that is up; None = nobody is."""
        now_s = self._clock.monotonic_s()
        servers = [
            b
            for pool in stages
            for b in pool.serving(model)
            if isinstance(b, EngineServer) and b.name not in exclude
        ]
        if options.pin:
            servers = [b for b in servers if b.name == options.pin]
        else:
            servers = [b for b in servers if b.status(now_s) in {BackendStatus.READY, BackendStatus.FULL}]
        return min(servers, key=lambda b: b.member.active).uncounted_slot() if servers else None

    def health(self) -> list[tuple[BackendState, bool]]:
        """Give every backend with whether it can answer: what GET /health of system C tells."""
        return [(state, state.standing == BackendStatus.READY.value) for state in self.states()]
