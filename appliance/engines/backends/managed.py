"""The backend whose llama-servers the model manager starts and stops.

A request leases a llama-server, is sent to it, and releases it. For the dispatcher this backend always has
capacity: requests wait in the manager's queue, where loading and swapping are decided. A request whose
llama-server exits before the first byte is sent to another one, or to the same one after its restart.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from appliance.base.clock import Clock
from appliance.base.errors import Invalid
from appliance.base.logs import get_logger
from appliance.base.metrics.registry import Metrics
from appliance.base.wire.pool import ConnectionPool
from appliance.engines.backends.adapters import AdapterState, adapter_not_loaded
from appliance.engines.backends.contract import NO_CALLBACKS, BackendCallbacks
from appliance.engines.backends.server import EngineServer, RunnerPolicy
from appliance.engines.backends.stats import BackendStats
from appliance.engines.dialects.contract import EngineFacts, EngineHealth
from appliance.engines.outcome import BreakerEffect, Outcome, Retry
from appliance.engines.settings import EngineSettings
from appliance.engines.slots import AnySlot, Slot
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
from appliance.engines.upstream.attempt import AttemptFailed
from appliance.engines.upstream.request_settings import apply_settings, with_system_prompt
from appliance.models.manager.manager import ModelManager
from appliance.models.manager.waiters import Lease, WaitStatus
from appliance.models.runner.runner import Runner
from appliance.models.table.catalogue import Model
from appliance.models.table.command import model_kind, request_context_tokens
from appliance.models.table.sampling import RequestSettings

log = get_logger("backend")
MANAGED_BACKEND = "models"
MAX_RETRIES = 2
CONNECT_TIMEOUT_S = 2.0
LIMIT_NAMES = dict.fromkeys(("first_byte", "idle", "total"), "twice request_timeout_sec of the model table")
# When a process exits, its connections break a moment earlier than the exit is seen.
EXIT_WAIT_S = 0.5
LISTED_ALIASES = 20
MAX_SILENT = 2  # answers in a row that did not come in time; a healthy llama-server is replaced then
SILENCES = frozenset({Outcome.FIRST_BYTE, Outcome.IDLE, Outcome.TOTAL})


@dataclass(slots=True)
class _SentRequest:
    """A request that was sent to a llama-server.

    Attributes:
        lease: On the llama-server.
        request: The request.
        outer: The dispatcher's slot, which a stream releases at its end; None = not a stream.
    """

    lease: Lease
    request: EngineRequest
    outer: AnySlot | None = None


class ManagedBackend:
    """All models of the table, as one backend."""

    name: ClassVar[str] = MANAGED_BACKEND
    kind: ClassVar[str] = "managed"
    pool: ClassVar[str] = MANAGED_BACKEND
    is_remote: ClassVar[bool] = False
    is_direct: ClassVar[bool] = True
    is_managed: ClassVar[bool] = True
    is_demo: ClassVar[bool] = False
    is_unknown: ClassVar[bool] = False
    context_tokens: ClassVar[int] = 0  # each model has its own

    def __init__(
        self,
        manager: ModelManager,
        *,
        settings: EngineSettings,
        wire: ConnectionPool,
        clock: Clock,
        metrics: Metrics,
        callbacks: BackendCallbacks = NO_CALLBACKS,
        is_wanted: bool = False,
    ) -> None:
        """Make the backend.

        Args:
            is_wanted: Whether models of this machine are asked for; without one, no demo engine then answers.
        """
        self.is_wanted = is_wanted
        self.manager = manager
        self.stats = BackendStats(self.name, clock=clock, metrics=metrics)
        self.member = self.stats.member
        self.adapters = AdapterState(self.name)  # each belongs to a model of the manager
        self.callbacks = callbacks
        self._wire = wire
        self._clock = clock
        self._metrics = metrics
        self._servers: dict[int, EngineServer] = {}  # by the serial number of their runner
        self._sent: dict[AnySlot, _SentRequest] = {}  # by the slot on the llama-server
        self._passthrough_leases: dict[AnySlot, Lease] = {}
        self._models: dict[str, ServedModel] = {}
        self._by_alias: dict[str, ServedModel] = {}
        self._request_settings: dict[str, RequestSettings] = {}  # of the models that have some
        self._models_of: tuple[int, int] | None = (
            None  # the versions of the models and of the adapters that they were made of
        )
        manager.add_removed_callback(self._forget)
        manager.add_models_callback(self.callbacks.on_models)
        self.apply(settings)

    def apply(self, settings: EngineSettings) -> None:
        """Take new settings; the model table's own timeouts win over those for backends."""
        timeout_s = 2.0 * self.manager.catalogue.system.request_timeout_sec
        self._settings = settings.model_copy(
            update={
                "upstream_connect_timeout_s": CONNECT_TIMEOUT_S,
                "upstream_first_byte_timeout_s": timeout_s,
                "upstream_idle_timeout_s": timeout_s,
                "backend_timeout_seconds": timeout_s,
            }
        )
        self._budget_s = timeout_s

    # ---- what it is

    @property
    def in_flight(self) -> int:
        """Requests that it works on, or that wait for one of its models."""
        return self.member.active

    def cards(self) -> list[ModelCard]:
        """List the models of the table, and their adapters."""
        return [served.card for served in self._served_models().values()]

    def find_model(self, model: str) -> ServedModel | None:
        """Return the model of this name or alias; None = it is not in the table."""
        return self._served_models().get(model) or self._by_alias.get(model)

    def _served_models(self) -> dict[str, ServedModel]:
        made_of = (self.manager.models_version, self.adapters.version)
        if self._models_of != made_of:
            created_s = int(self._clock.now_s())
            models = {}
            for alias, state in self.manager.model_states.items():
                card = ModelCard(
                    alias,
                    created_s,
                    "user",
                    alias,
                    aliases=state.definition.aliases,
                    context_tokens=request_context_tokens(state.definition, state.header, state.slots),
                    is_text=model_kind(state.definition, state.header) == "text",
                )
                engine = state.definition.engine
                name = engine.served_model or alias if engine is not None else alias
                models[alias] = ServedModel(card, name)
            self._by_alias = {alias: served for served in models.values() for alias in served.card.aliases}
            self._request_settings = {
                alias: state.definition.requests
                for alias, state in self.manager.model_states.items()
                if state.definition.requests
            }
            self._models = self.adapters.apply_to(models)
            self._models_of = made_of
        return self._models

    def status(self, now_s: float) -> BackendStatus:
        """Return READY: requests wait in the manager's queue."""
        return BackendStatus.READY

    # ---- slots

    def take(self, reason: str) -> Slot[Self]:
        """Take a slot; choice and errors are counted by the llama-server's own slot (see `_send`)."""
        self.member.record_start(self._clock.now_s())
        return self.stats.open_uncounted_slot(self)

    def uncounted_slot(self) -> Slot[Self]:
        """Take a slot: every request needs a slot of a llama-server."""
        return self.take("")

    def record(self, slot: AnySlot, outcome: Outcome, retry_after_s: float | None) -> None:
        """Count the end of a request, and release the llama-server of a passthrough."""
        self.stats.close_slot(slot, outcome)
        self.adapters.release(slot)
        self.member.record_end(slot.attempt.ms / 1000 if outcome is Outcome.OK else None)
        lease = self._passthrough_leases.pop(slot, None)
        if lease is not None:
            lease.release(is_ok=not outcome.is_error)
        self.callbacks.on_capacity()

    async def prepare_passthrough(self, slot: AnySlot, model: str | None, options: RequestOptions) -> None:
        """Lease a llama-server for a slot.

        Args:
            slot: As `take` returned it.
            model: None = the only model of the table.
            options: The request's.

        Raises:
            Invalid: There are several models, or `model` is an adapter.
            ApplianceError: The model is not available (see ModelManager.lease).
        """
        lease = await self._lease(self._passthrough_model(model), options)
        self._passthrough_leases[slot] = lease
        slot.url = slot.attempt.endpoint = lease.url

    def passthrough_settings(self, slot: AnySlot) -> tuple[str, RequestSettings] | None:
        """Return what the table says about requests for the model of a slot (see SettlesRequests)."""
        lease = self._passthrough_leases.get(slot)
        self._served_models()
        settings = self._request_settings.get(lease.runner.alias) if lease is not None else None
        return (lease.runner.alias, settings) if lease is not None and settings else None

    def _passthrough_model(self, model: str | None) -> str:
        aliases = list(self.manager.model_states)
        if model is None and len(aliases) != 1:
            raise Invalid(
                "Name the model that this is for, in `model` of the body or of the query. "
                f"There are {', '.join(aliases[:LISTED_ALIASES])}.",
                param="model",
                code="missing_required_parameter",
            )
        name = aliases[0] if model is None else model
        served = self.find_model(name)
        if served is not None and served.card.parent:
            raise Invalid(
                f"{name!r} is an adapter: it answers only chats and completions of the OpenAI, Ollama and "
                f"Responses addresses. Here, name its model {served.card.parent!r}.",
                param="model",
                code="not_supported",
            )
        return served.card.id if served is not None else name

    async def count_tokens(self, model: str, body: dict[str, Any]) -> int | None:
        """Let a llama-server of the model count them, where one is loaded (see TokenCounter)."""
        served = self.find_model(model)
        name = served.card.parent or served.card.id if served is not None else ""
        state = self.manager.model_states.get(name)
        runners = [runner for runner in state.runners if runner.phase == "ready"] if state is not None else []
        if name in self._request_settings:
            body = with_system_prompt(body, self._request_settings[name])
        return await self._server(runners[0]).count_tokens(model, body) if runners else None

    # ---- sending

    async def send(self, request: EngineRequest, slot: AnySlot, *, budget_s: float) -> EngineReply:
        """Answer `request` by one of the model's llama-servers (see Backend.send).

        It may take longer than `budget_s`: the table's own limits apply to the queue and to the response.
        """
        reply = None
        try:
            self._apply_table(request)
            self.adapters.acquire(request.wanted_model, slot)
            last: AttemptFailed | None = None
            for retries_left in range(MAX_RETRIES, -1, -1):
                lease = await self._lease_for(request)
                request.receipt.queue_ms += lease.waited_s * 1000
                request.load_s += lease.load_s
                try:
                    reply = await self._send(request, slot, lease)
                    return reply
                except AttemptFailed as failure:
                    if _was_silent(failure, request):
                        self._record_silence(lease.runner)
                        raise  # the same one would be silent again, for minutes
                    if not retries_left or not _may_retry(failure, last):
                        raise
                    last = failure
                    log.warning(
                        "retried", alias=request.wanted_model, reason=failure.label, id=request.receipt.id
                    )
                    if (
                        failure.outcome.breaker is not BreakerEffect.UNDECIDED
                    ):  # else it answered: it is alive
                        await _wait_exited(lease.runner)
            raise AssertionError("unreachable")
        finally:
            if reply is None:
                slot.release(Outcome.REFUSED)  # the attempts in the receipt have the real outcomes

    def _record_silence(self, runner: Runner) -> None:
        """Count an answer that did not come in time; MAX_SILENT in a row replace the llama-server."""
        runner.silent_answers += 1
        log.warning("no_answer_in_time", alias=runner.alias, port=runner.port, in_a_row=runner.silent_answers)
        if runner.silent_answers >= MAX_SILENT:
            self.manager.replace_silent(runner)

    def _apply_table(self, request: EngineRequest) -> None:
        """Name the model of a request by its own name, and change the request as the table says."""
        served = self.find_model(request.wanted_model)
        if served is None:
            return
        request.wanted_model = served.card.id
        settings = self._request_settings.get(served.card.parent or served.card.id)
        if settings is not None:
            apply_settings(request, settings)

    async def _send(self, request: EngineRequest, slot: AnySlot, lease: Lease) -> EngineReply:
        try:
            server = self._server(lease.runner)
        except BaseException:
            lease.release(is_ok=True)
            raise
        inner = server.take("managed")
        sent = self._sent[inner] = _SentRequest(lease, request)
        reply = await server.send(request, inner, budget_s=self._budget_s)
        lease.runner.silent_answers = 0
        if reply.events is not None:
            sent.outer = slot
        else:
            slot.release(Outcome.OK)
        return reply

    def _on_released(self, inner: AnySlot, outcome: Outcome) -> None:
        """Release the lease on a llama-server: its request ended."""
        sent = self._sent.pop(inner, None)
        if sent is None:
            return
        receipt = sent.request.receipt
        sent.lease.release(
            is_ok=not outcome.is_error,
            prompt_tokens=receipt.prompt_tokens or 0,
            completion_tokens=receipt.completion_tokens or 0,
        )
        if sent.outer is not None:
            sent.outer.release(outcome)

    async def _lease_for(self, request: EngineRequest) -> Lease:
        """Lease a llama-server of the model; for an adapter one of its base model that was started with it.

        Raises:
            Unavailable: The adapter was unloaded while the request waited.
        """
        name = request.wanted_model
        served = self.find_model(name)
        base = served.card.parent if served is not None else ""
        while base:
            lease = await self._lease(base, request.options, request)
            if any(adapter.name == name for adapter in lease.runner.model.lora):
                return lease
            lease.release(is_ok=True)
            if self.find_model(name) is None:
                break
            await asyncio.sleep(0)  # it was leased just before its model is restarted
        if name in self.adapters.declared:
            raise adapter_not_loaded(name, "it was unloaded")
        return await self._lease(name, request.options, request)

    async def _lease(
        self, alias: str, options: RequestOptions, request: EngineRequest | None = None
    ) -> Lease:
        """Lease a llama-server; while it waits, `request` has headers about the wait."""

        def on_wait(wait_status: Callable[[], WaitStatus]) -> None:
            if request is not None:
                request.wait_headers = lambda: waiting_headers(wait_status())

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

    # ---- its llama-servers

    def runners(self) -> list[tuple[str, int, EngineServer]]:
        """List the llama-servers that are ready: (model, port, server)."""
        runners = [
            runner
            for state in self.manager.model_states.values()
            for runner in state.runners
            if runner.phase == "ready"
        ]
        return [(runner.alias, runner.port, self._server(runner)) for runner in runners]

    def _server(self, runner: Runner) -> EngineServer:
        server = self._servers.get(runner.serial)
        if server is None:
            server = self._servers[runner.serial] = self._make_server(runner)
        return server

    def _make_server(self, runner: Runner) -> EngineServer:
        """Return the server object for a llama-server of the manager, or for another engine."""
        alias, state = runner.alias, self.manager.model_states.get(runner.alias)
        engine = runner.model.engine
        upstream = engine.served_model or alias if engine is not None else alias
        header = state.header if state is not None else None
        context_tokens = request_context_tokens(runner.model, header, runner.slots)
        card = ModelCard(alias, int(runner.started_at_s), "user", alias, context_tokens=context_tokens)
        adapters = served_adapters(runner.model, card)
        spec = BackendSpec(
            url=f"http://127.0.0.1:{runner.port}",
            name=self.name,
            kind=engine.kind if engine is not None else "llamacpp",
            pool=self.pool,
            models=(alias, *adapters),
        )
        server = EngineServer(
            spec,
            settings=self._settings,
            wire=self._wire,
            clock=self._clock,
            metrics=self._metrics,
            origin="managed",
            runner=RunnerPolicy(
                f"The {'llama-server' if engine is None else 'engine'} of {alias}",
                self._on_released,
                LIMIT_NAMES,
            ),
        )
        server.state.health = EngineHealth(True)
        models = {alias: ServedModel(card, upstream), **adapters}
        server.state.update_facts(EngineFacts(models, context_tokens, runner.slots))
        return server

    def _forget(self, runner: Runner) -> None:
        self._servers.pop(runner.serial, None)

    # ---- what it shows

    def describe(self) -> BackendState:
        """Return its current state, from memory."""
        views, member = self.manager.models(), self.member
        loaded = sum(view.status == "ready" for view in views)
        return BackendState(
            self.name,
            self.kind,
            True,
            f"{loaded} of {len(views)} models loaded",
            (),
            tuple(view.alias for view in views),
            self.in_flight,
            pool=self.pool,
            waiting=float(sum(queue.queue_length for queue in self.manager.queues())),
            running=float(sum(view.active for view in views)),
            chosen_total=member.total,
            mean_s=member.mean_s,
            last_s=member.last_s,
            last_used_at_s=member.last_used_s,
            origin="managed",
        )

    def measure(self) -> None:
        """Bring its gauges up to date; called when metrics are read."""
        self._metrics.update_backend(self.describe())

    async def close(self) -> None:
        """Do nothing: its llama-servers belong to the manager."""


def served_adapters(model: Model, base: ModelCard) -> dict[str, ServedModel]:
    """Return the adapters that a model was started with and that clients can name.

    Each is requested with `lora` in the body. Adapters that are not in that list are off for the request, so
    those of the table are listed with their own scale.
    """
    of_table = [
        {"id": number, "scale": adapter.scale}
        for number, adapter in enumerate(model.lora)
        if not adapter.name and adapter.scale
    ]
    found = {}
    for number, adapter in enumerate(model.lora):
        if adapter.name:
            card = ModelCard(
                adapter.name,
                base.created_s,
                "user",
                base.id,
                context_tokens=base.context_tokens,
                parent=base.id,
                path=str(adapter.path),
            )
            lora = [*of_table, {"id": number, "scale": 1.0}]
            found[adapter.name] = ServedModel(card, base.id, (("lora", lora),))
    return found


def _was_silent(failure: AttemptFailed, request: EngineRequest) -> bool:
    """Whether a llama-server said nothing in the whole time that it had.

    An answer that was begun and took too long as a whole is not silence.
    """
    if not failure.is_timeout or failure.outcome not in SILENCES:
        return False
    return failure.outcome is not Outcome.TOTAL or not request.receipt.upstream_ms


def _may_retry(failure: AttemptFailed, former: AttemptFailed | None) -> bool:
    """Whether another try at the same model may succeed.

    Not with too long a prompt, nor with a 4xx, nor when it said the same twice.

    Args:
        failure: The latest try's.
        former: The try's before; None = it is the first.
    """
    if failure.context is not None or failure.outcome.retry is Retry.FREE:
        return False
    if former is not None and failure.says_the_same_as(former):
        return False
    return (failure.status or 500) >= 500


async def _wait_exited(runner: Runner) -> None:
    """Wait a moment for the process to exit: else the next attempt could get the same one."""
    if runner.process is not None and runner.phase == "ready":
        try:
            await asyncio.wait_for(runner.process.exited.wait(), EXIT_WAIT_S)
        except TimeoutError:
            pass


def waiting_headers(waiting: WaitStatus) -> list[tuple[str, str]]:
    """Return the headers for a client that waits.

    They hold the position in the queue, the model's status, its load progress in percent, and the seconds
    until it is ready.
    """
    rows = [("X-Queue-Position", str(waiting.position)), ("X-Model-Status", waiting.status)]
    if waiting.progress is not None:
        rows.append(("X-Model-Load-Progress", str(waiting.progress)))
    if waiting.expected_in_s is not None:
        rows.append(("X-Model-Expected-In", f"{waiting.expected_in_s:g}"))
    return rows
