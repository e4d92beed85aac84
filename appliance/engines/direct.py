"""Slots for passthrough and tunnels: the dispatcher chooses a server, they send to it themselves."""

from collections.abc import Collection
from dataclasses import replace

from appliance.base.clock import Clock
from appliance.base.errors import ApplianceError, Invalid, NotFound, Unavailable
from appliance.base.metrics.registry import Metrics
from appliance.engines.backends.contract import Backend
from appliance.engines.dispatch import Dispatcher
from appliance.engines.dispatch_request import DispatchRequest
from appliance.engines.outcome import Outcome
from appliance.engines.pool import Pool, Pools
from appliance.engines.receipts import Receipt
from appliance.engines.routes import ModelRoute, Routes
from appliance.engines.slots import Slot
from appliance.engines.types import NO_OPTIONS, BackendStatus, RequestOptions

UP = {BackendStatus.READY, BackendStatus.FULL}


class DirectAccess:
    """Lease slots on the servers that can be reached directly: all but hosted APIs and the demo engine."""

    def __init__(
        self, pools: Pools, routes: Routes, dispatcher: Dispatcher, *, clock: Clock, metrics: Metrics
    ) -> None:
        self._pools = pools
        self._routes = routes
        self._dispatcher = dispatcher
        self._clock = clock
        self._metrics = metrics

    def server_names(self) -> list[str]:
        """Return the names of the backends that can be reached directly."""
        return [backend.name for backend in self._pools.backends() if backend.is_direct]

    def has_servers(self) -> bool:
        """Whether any backend can be reached directly."""
        return any(backend.is_direct for backend in self._pools.backends())

    def is_managed(self, model: str) -> bool:
        """Whether a model of the table is named, whose llama-server the manager starts and stops."""
        return any(
            backend.is_managed and backend.find_model(model) is not None for backend in self._pools.backends()
        )

    def needs_model(self) -> bool:
        """Whether only models that run here can be reached, and several: no server answers for all."""
        direct = [backend for backend in self._pools.backends() if backend.is_direct]
        models = {card.id for backend in direct for card in backend.cards() if not card.parent}
        return all(backend.is_managed for backend in direct) and len(models) > 1

    def may_retry(self, reason: str) -> bool:
        """Whether a request that a server failed may go to another one: as long as the retry budget lasts."""
        if not self._dispatcher.retry_budget.withdraw():
            return False
        self._metrics.retries.labels(reason).inc()
        return True

    async def lease(
        self,
        *,
        receipt: Receipt,
        model: str = "",
        exclude: Collection[str] = (),
        options: RequestOptions = NO_OPTIONS,
        is_uncounted: bool = False,
        is_any: bool = False,
        may_wait: bool = True,
    ) -> Slot[Backend]:
        """Return a slot on one server.

        Args:
            receipt: Gets server, address, reason and attempt.
            model: Only servers that serve it; "" = the default model, as far as a server has it.
            exclude: Names of servers that must not be used: they had the request already.
            options: `pin` is the name of the only server that may be used.
            is_uncounted: For a query about the server itself, which needs no capacity: also sent while the
                server is full and, if it is pinned, in any state.
            is_any: Without a model, any server: those of the default model do not have the address.
            may_wait: Wait for a server that is full; False = only one that is ready now will do.

        Returns:
            A slot with url, headers and ssl; `release` must be called in any case.

        Raises:
            NotFound: No such server.
            NoSuchModel: No backend serves the model.
            Invalid: The model is an adapter that cannot be selected directly.
            Unavailable: No server can answer.
            Exhausted: The queue is full.
        """
        stages, wanted, reason = self._servers_for(model, options.pin, receipt, is_any=is_any)
        slot: Slot[Backend] | None = None
        if is_uncounted and not self.is_managed(model):
            slot = self._uncounted_slot(stages, wanted, options, exclude)
        if slot is not None:
            receipt.reason = reason
        else:
            request = DispatchRequest(
                stages=stages,
                model=wanted,
                reason=reason,
                options=options,
                receipt=receipt,
                deadline_s=self._clock.monotonic_s() + self._dispatcher.settings.backend_timeout_seconds,
                tried={*exclude, *self._find_excluded(wanted, options, is_named=bool(model))},
                is_pinned=bool(options.pin),
            )
            slot = await self._prepared_slot(request, may_wait=may_wait)
        if not exclude:
            self._dispatcher.retry_budget.deposit()
        receipt.backend, receipt.endpoint = slot.backend.name, slot.attempt.endpoint
        receipt.attempts.append(slot.attempt)
        return slot

    async def _prepared_slot(self, request: DispatchRequest, *, may_wait: bool) -> Slot[Backend]:
        slot = await self._dispatcher.take_slot(request, may_wait=may_wait)
        try:
            await slot.backend.prepare_passthrough(slot, request.model, request.options)
        except BaseException:
            slot.release(Outcome.CANCELLED)
            raise
        return slot

    def _servers_for(
        self, model: str, pin: str, receipt: Receipt, *, is_any: bool
    ) -> tuple[list[Pool], str | None, str]:
        """Return (stages with servers in them, the model's name among backends or None, the reason).

        1. a server is pinned     → its pool; the model counts only if it decides which process answers
        2. a model is named       → the pools that serve it
        3. neither                → those of the default model, if a server has it
        4. no server has it       → all pools
        """
        if pin:  # 1
            backend = self._pools.backend(pin)
            if not backend.is_direct:
                raise NotFound(
                    f"The backend {pin[:200]!r} cannot be reached directly: it is not a server.",
                    code="no_such_backend",
                )
            wanted = model if backend.is_managed and model else None
            return [self._pools.pool_of(backend)], wanted, "pinned"
        if model:  # 2
            receipt.model = model
            route = self._routes.find(model)
            receipt.public_model = route.card.id
            stages, wanted, reason = route.stages, route.model, route.reason
        elif not is_any and (default := self._default_model()) is not None:  # 3
            stages, wanted, reason = default.stages, default.model, default.reason
        else:  # 4
            stages, wanted, reason = self._pools.all, None, "any"
        stages = [pool for pool in stages if any(backend.is_direct for backend in pool.backends)]
        if not stages:
            raise Unavailable(
                "No backend here can be reached directly: the model is served by a hosted API.",
                code="no_backend",
            )
        return stages, wanted, reason

    def _default_model(self) -> ModelRoute | None:
        """Return the route of the default model, of an adapter its base; None = no server has it."""
        try:
            route = self._routes.find("")
        except ApplianceError:  # nothing is known of the servers yet
            return None
        if route.card.parent:
            base = self._routes.find_exact(route.card.parent)
            route = replace(base, reason=route.reason) if base is not None else route
        has_server = any(backend.is_direct for pool in route.stages for backend in pool.serving(route.model))
        return route if has_server else None

    def _find_excluded(self, wanted: str | None, options: RequestOptions, *, is_named: bool) -> set[str]:
        """Return the names of the backends that must not get a request.

        1. those that cannot be reached directly
        2. those that cannot select the adapter by its name alone
        3. the managed models, if it names none: no model is loaded for it while a server can answer
        """
        backends = self._pools.backends()
        excluded = {backend.name for backend in backends if not backend.is_direct}  # 1
        servers = [backend for backend in backends if backend.is_direct and not backend.is_managed]
        if wanted and (is_named or options.pin):
            excluded |= self._find_unselectable(wanted)  # 2
        elif not options.pin and any(wanted is None or backend.find_model(wanted) for backend in servers):
            excluded |= {backend.name for backend in backends if backend.is_managed}  # 3
        return excluded

    def _find_unselectable(self, wanted: str) -> set[str]:
        """Return the names of the servers where an adapter needs more than its name in the body.

        Passthrough changes no body, so the base model would answer there.

        Raises:
            Invalid: There are only such servers.
        """
        serving = [
            (backend.name, served)
            for backend in self._pools.backends()
            if not backend.is_managed and (served := backend.find_model(wanted)) is not None
        ]
        unselectable = {
            name
            for name, served in serving
            if served.card.parent and (served.extra or served.upstream != wanted)
        }
        if unselectable and len(unselectable) == len(serving):
            raise Invalid(
                f"{wanted!r} is an adapter, and this address cannot select it. Use the chat, completion or "
                "Responses addresses, or name its base model and select the adapter as the engine requires.",
                param="model",
                code="not_supported",
            )
        return unselectable

    def _uncounted_slot(
        self, stages: list[Pool], model: str | None, options: RequestOptions, exclude: Collection[str]
    ) -> Slot[Backend] | None:
        """Return a slot that takes no capacity; None = no server is up.

        1. a server is pinned → that one, whatever its state
        2. otherwise          → the least busy one that is up
        """
        now_s = self._clock.monotonic_s()
        servers = [
            backend
            for pool in stages
            for backend in pool.serving(model)
            if backend.is_direct and not backend.is_managed and backend.name not in exclude
        ]
        if options.pin:
            servers = [backend for backend in servers if backend.name == options.pin]
        else:
            servers = [backend for backend in servers if backend.status(now_s) in UP]
        if not servers:
            return None
        return min(servers, key=lambda backend: backend.member.active).uncounted_slot()
