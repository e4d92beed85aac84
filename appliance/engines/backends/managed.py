"""The backend whose llama-servers the model manager starts and stops: a request leases one, is sent to it, and gives it back.

To the dispatcher it always has room: who waits, waits in the manager's line, where loading and swapping are decided. A llama-server
that dies before its first byte costs the request nothing but time: it is given another, or the same one started again.
"""

import asyncio
from collections.abc import Callable
from typing import Any, Self

from appliance.base.clock import Clock
from appliance.base.errors import Invalid
from appliance.base.logs import get_logger
from appliance.base.metrics.registry import Metrics
from appliance.base.wire.pool import ConnectionPool
from appliance.engines.backends.adapters import AdapterState, not_loaded
from appliance.engines.backends.server import EngineServer
from appliance.engines.dialects.contract import EngineFacts, EngineHealth
from appliance.engines.outcome import Outcome, Retry
from appliance.engines.settings import EngineSettings
from appliance.engines.slots import AnySlot, BackendStats, Slot
from appliance.engines.specs import BackendSpec
from appliance.engines.types import (
    BackendState,
    BackendStatus,
    EngineReply,
    EngineRequest,
    ModelCard,
    RequestOptions,
    ServedModel,
)
from appliance.engines.upstream.exchange import AttemptFailed
from appliance.models.manager.manager import ModelManager
from appliance.models.manager.waiters import Lease, WaitStatus
from appliance.models.runner.runner import Runner
from appliance.models.table.catalogue import Model
from appliance.models.table.command import slot_context_tokens

log = get_logger("backend")
NAME = "models"
RETRIES = 2
DEATH_S = (
    0.5  # a broken connection is the first that is seen of a death; the second is the end of the process
)


class RunnerServer(EngineServer):
    """One llama-server of the manager's, as the thing that requests are sent to."""

    _asks_first = False  # it is the very process that was started with these adapters

    def __init__(
        self,
        runner: Runner,
        card: ModelCard,
        *,
        settings: EngineSettings,
        wire: ConnectionPool,
        clock: Clock,
        metrics: Metrics,
    ) -> None:
        adapters = adapters_of(runner.model, card)
        spec = BackendSpec(
            url=f"http://127.0.0.1:{runner.port}",
            name=NAME,
            kind="llamacpp",
            pool=NAME,
            models=(runner.alias, *adapters),
        )
        super().__init__(spec, settings=settings, wire=wire, clock=clock, metrics=metrics, origin="managed")
        self._label = f"The llama-server of {runner.alias}"
        self.leases: dict[AnySlot, Lease] = {}
        self.outer: dict[AnySlot, AnySlot] = {}  # of streams: the dispatcher's place, given back at their end
        self.requests: dict[AnySlot, EngineRequest] = {}
        self.health = EngineHealth(True)
        self.update_facts(
            EngineFacts(
                {runner.alias: ServedModel(card, runner.alias), **adapters}, card.context_tokens, runner.slots
            )
        )

    def record(self, slot: AnySlot, outcome: Outcome, retry_after_s: float | None) -> None:
        """A request ended: its slot goes back to the manager."""
        super().record(slot, outcome, retry_after_s)
        lease, request, outer = (
            self.leases.pop(slot, None),
            self.requests.pop(slot, None),
            self.outer.pop(slot, None),
        )
        if lease is not None:
            receipt = request.receipt if request is not None else None
            lease.release(
                is_ok=not outcome.is_error,
                prompt_tokens=(receipt.prompt_tokens or 0) if receipt else 0,
                completion_tokens=(receipt.completion_tokens or 0) if receipt else 0,
            )
        if outer is not None:
            outer.release(outcome)


class ManagedBackend(BackendStats):
    """All models of the table, as one backend."""

    kind = "managed"
    is_remote = False
    is_direct = True
    is_managed = True
    context_tokens = 0  # each model has its own

    def __init__(
        self,
        manager: ModelManager,
        *,
        settings: EngineSettings,
        wire: ConnectionPool,
        clock: Clock,
        metrics: Metrics,
    ) -> None:
        super().__init__(NAME, pool=NAME, clock=clock, metrics=metrics)
        self.manager = manager
        self._wire = wire
        self._servers: dict[int, RunnerServer] = {}
        self._boarded: dict[AnySlot, Lease] = {}
        self._made_of: Any = None
        self._served: dict[str, ServedModel] = {}
        self.on_models: Callable[[], None] = lambda: None  # the fleet's: what it serves changed
        self.adapters = AdapterState()  # adapters; each has its base model's entry in the manager
        manager.add_removed_callback(self._forget)
        self.apply(settings)

    def apply(self, settings: EngineSettings) -> None:
        """Take new settings; the model table's own times win over those for backends."""
        seconds = 2.0 * self.manager.catalogue.system.request_timeout_sec
        self._settings = settings.model_copy(
            update={
                "upstream_connect_timeout_s": 2.0,
                "upstream_first_byte_timeout_s": seconds,
                "upstream_idle_timeout_s": seconds,
            }
        )
        self._budget_s = seconds

    # ---- what it serves

    def _all(self) -> dict[str, ServedModel]:
        catalogue = self.manager.catalogue
        if self._made_of != (id(catalogue), self.adapters.version):
            created_s = int(self._clock.now_s())
            self._served = {}
            for alias, entry in self.manager.model_states.items():
                card = ModelCard(
                    alias,
                    created_s,
                    "user",
                    alias,
                    context_tokens=slot_context_tokens(entry.model.params.n_ctx, entry.slots),
                )
                self._served[alias] = ServedModel(card, alias)
            self._served = self.adapters.apply_to(self._served)
            self._made_of = (id(catalogue), self.adapters.version)
        return self._served

    def cards(self) -> list[ModelCard]:
        return [served.card for served in self._all().values()]

    def find_model(self, model: str) -> ServedModel | None:
        return self._all().get(model)

    def status(self, now_s: float) -> BackendStatus:
        return BackendStatus.READY

    # ---- answering

    def take(self, reason: str) -> Slot[Self]:
        """Take a place; what it comes to is counted where it is sent, see RunnerServer."""
        self.member.record_start(self._clock.now_s())
        return self._place()

    def _place(self) -> Slot[Self]:
        return super().uncounted_slot()

    def record(self, slot: AnySlot, outcome: Outcome, retry_after_s: float | None) -> None:
        took_s = self._clock.monotonic_s() - slot.started_s
        slot.attempt.ms = took_s * 1000
        self.adapters.release(slot)
        self.member.record_end(took_s if outcome is Outcome.OK else None)
        lease = self._boarded.pop(slot, None)
        if lease is not None:
            lease.release(is_ok=not outcome.is_error)
        self.on_capacity(self)

    async def send(self, request: EngineRequest, slot: AnySlot, *, budget_s: float) -> EngineReply:
        """Answer `request` by one of the model's llama-servers (see Backend.send). It may wait longer than `budget_s`: the table's
        own limits hold, for the line and for the answer."""
        reply = None
        try:
            self.adapters.acquire(request.wanted_model, slot)
            for left in range(RETRIES, -1, -1):
                lease = await self._lease_of(request)
                request.receipt.queue_ms += lease.waited_s * 1000
                try:
                    reply = await self._send(request, slot, lease)
                    return reply
                except AttemptFailed as failure:
                    if (
                        not left
                        or failure.context is not None
                        or failure.outcome.retry is Retry.FREE
                        or (failure.status or 500) < 500
                    ):
                        raise
                    log.warning(
                        "retried", alias=request.wanted_model, why=failure.label, id=request.receipt.id
                    )
                    await _seen_dead(lease.runner)
            raise AssertionError("unreachable")
        finally:
            if reply is None:
                slot.release(Outcome.REFUSED)  # what it was is in the receipt's attempts

    async def _send(self, request: EngineRequest, slot: AnySlot, lease: Lease) -> EngineReply:
        try:
            server = self._server(lease.runner)
        except BaseException:
            lease.release(is_ok=True)
            raise
        inner = server.take("managed")
        server.leases[inner], server.requests[inner] = lease, request
        reply = await server.send(request, inner, budget_s=self._budget_s)
        if reply.events is not None:
            server.outer[inner] = slot
        else:
            slot.release(Outcome.OK)
        return reply

    async def _lease_of(self, request: EngineRequest) -> Lease:
        """Lease a llama-server of the model; for an adapter one of its base model, which was started with it.

        Raises  Unavailable: the adapter went while the request waited
        """
        name = request.wanted_model
        served = self.find_model(name)
        base = served.card.parent if served is not None else ""
        while base:
            lease = await self._lease(base, request.options, request)
            if any(one.name == name for one in lease.runner.model.lora):
                return lease
            lease.release(is_ok=True)
            if self.find_model(name) is None:
                break
            await asyncio.sleep(0)  # it was given as its model was about to be started anew
        if name in self.adapters.declared:
            raise not_loaded(name, "it was unloaded")
        return await self._lease(name, request.options, request)

    async def _lease(
        self, alias: str, options: RequestOptions, request: EngineRequest | None = None
    ) -> Lease:
        def on_wait(tell: Callable[[], WaitStatus]) -> None:
            if request is not None:
                request.wait_headers = lambda: waiting_headers(tell())

        try:
            return await self.manager.lease(
                alias,
                flow=options.flow,
                priority=options.priority,
                keep_alive_s=options.keep_alive_s,
                on_wait=on_wait,
            )
        finally:
            if request is not None:
                request.wait_headers = None

    async def prepare_passthrough(self, slot: AnySlot, model: str | None, options: RequestOptions) -> None:
        """Give a place of passage its llama-server; without a model's name the only one that there is.

        Raises  Invalid: there are several · what Manager.lease raises
        """
        if model is None:
            aliases = list(self.manager.model_states)
            if len(aliases) != 1:
                raise Invalid(
                    f"Name the model that this is for, in `model` of the body or of the query. There are {', '.join(aliases[:20])}.",
                    param="model",
                    code="missing_required_parameter",
                )
            model = aliases[0]
        if (served := self.find_model(model)) is not None and served.card.parent:
            raise Invalid(
                f"{model!r} is an adapter: it answers chats and completions of the OpenAI, Ollama and Responses addresses. Here, name its "
                f"model {served.card.parent!r}.",
                param="model",
                code="not_supported",
            )
        lease = await self._lease(model, options)
        self._boarded[slot] = lease
        slot.url = slot.attempt.endpoint = lease.url

    def _server(self, runner: Runner) -> RunnerServer:
        server = self._servers.get(runner.serial)
        if server is None:
            card = ModelCard(
                runner.alias,
                int(runner.started_at_s),
                "user",
                runner.alias,
                context_tokens=slot_context_tokens(runner.model.params.n_ctx, runner.slots),
            )
            server = self._servers[runner.serial] = RunnerServer(
                runner,
                card,
                settings=self._settings,
                wire=self._wire,
                clock=self._clock,
                metrics=self._metrics,
            )
        return server

    def runners(self) -> list[tuple[str, int, RunnerServer]]:
        """Give the llama-servers that are ready, with their models and ports."""
        runners = [
            runner
            for entry in self.manager.model_states.values()
            for runner in entry.runners
            if runner.phase == "ready"
        ]
        return [(runner.alias, runner.port, self._server(runner)) for runner in runners]

    def _forget(self, runner: Runner) -> None:
        self._servers.pop(runner.serial, None)

    # ---- telling

    def state(self) -> BackendState:
        views = self.manager.models()
        loaded = sum(view.status == "ready" for view in views)
        return BackendState(
            NAME,
            self.kind,
            True,
            f"{loaded} of {len(views)} models loaded",
            (),
            tuple(view.alias for view in views),
            self.in_flight,
            pool=NAME,
            waiting=float(sum(queue.queue_length for queue in self.manager.queues())),
            running=float(sum(view.active for view in views)),
            chosen_total=self.member.total,
            mean_s=self.member.mean_s,
            last_s=self.member.last_s,
            last_used_at_s=self.member.last_used_s,
            origin="managed",
        )

    def measure(self) -> None:
        self._metrics.update_backend(self.state())

    async def close(self) -> None:
        """Its llama-servers belong to the manager."""


def adapters_of(model: Model, base: ModelCard) -> dict[str, ServedModel]:
    """Give the adapters that a model was started with and that are models for requests: each is asked for with `lora` in the body.

    What such a list leaves out is off for the request: those of the table are named with the strength that they have there.
    """
    table = [
        {"id": number, "scale": one.scale}
        for number, one in enumerate(model.lora)
        if not one.name and one.scale
    ]
    found = {}
    for number, one in enumerate(model.lora):
        if one.name:
            card = ModelCard(
                one.name,
                base.created_s,
                "user",
                base.id,
                context_tokens=base.context_tokens,
                parent=base.id,
                path=str(one.path),
            )
            found[one.name] = ServedModel(card, base.id, (("lora", [*table, {"id": number, "scale": 1.0}]),))
    return found


async def _seen_dead(runner: Runner) -> None:
    """Give the end of a process the moment that it takes to be seen: else the next try would be given the same one."""
    if runner.process is not None and runner.phase == "ready":
        try:
            await asyncio.wait_for(runner.process.exited.wait(), DEATH_S)
        except TimeoutError:
            pass


def waiting_headers(waiting: WaitStatus) -> list[tuple[str, str]]:
    """Give what a client that waits is told: its position in line, the model's status, how far it is loaded, seconds until it is ready."""
    rows = [("X-Queue-Position", str(waiting.position)), ("X-Model-Status", waiting.status)]
    if waiting.progress is not None:
        rows.append(("X-Model-Load-Progress", str(waiting.progress)))
    if waiting.expected_in_s is not None:
        rows.append(("X-Model-Expected-In", f"{waiting.expected_in_s:g}"))
    return rows
