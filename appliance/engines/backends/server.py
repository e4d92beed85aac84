"""One server of an engine: its state, its client for queries, and one attempt to send it a request."""

import asyncio
import math
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, Self

from appliance.base.clock import Clock
from appliance.base.errors import ApplianceError
from appliance.base.inline import in_task
from appliance.base.logs import SECRETS, get_logger
from appliance.base.metrics.registry import Metrics
from appliance.base.plain_text import public_address
from appliance.base.wire.pool import ConnectionPool
from appliance.base.wire.types import Target, Timeouts, WireError
from appliance.engines.backends.adapters import adapter_missing, is_adapter_missing
from appliance.engines.backends.contract import NO_CALLBACKS, BackendCallbacks
from appliance.engines.backends.served_models import ServedModels
from appliance.engines.backends.server_state import ServerState
from appliance.engines.backends.stats import BackendStats
from appliance.engines.dialects.client import HttpEngineClient
from appliance.engines.dialects.contract import EngineClient, LoraDialect, TokenCountingDialect
from appliance.engines.metrics.extras import EngineExtras
from appliance.engines.metrics.families import MEASURING
from appliance.engines.outcome import BreakerEffect, Outcome
from appliance.engines.receipts import Receipt
from appliance.engines.settings import EngineSettings
from appliance.engines.slots import AnySlot, ResponseTimes, Slot
from appliance.engines.specs import BackendSpec
from appliance.engines.types import (
    BackendState,
    BackendStatus,
    EngineReply,
    EngineRequest,
    ModelCard,
    Operation,
    RequestOptions,
    ServedModel,
)
from appliance.engines.upstream.attempt import AttemptFailed
from appliance.engines.upstream.exchange import LIMIT_NAMES, AttemptObserver, Peer, UpstreamCall, exchange
from appliance.engines.upstream.refusal import interpret_error
from appliance.engines.upstream.request_body import ask_for_usage, render_body
from appliance.engines.upstream.spelling import spell_options

log = get_logger("backend")
OWN_LIMIT_NAMES = {**LIMIT_NAMES, "total": "BACKEND_TIMEOUT_SECONDS"}
# Kinds that add one chunk with the usage to a stream when they are asked, and change nothing else in it.
# Others are asked where an account pays. A llama-server has its counts in `timings` anyway, and would move
# those to that chunk.
TAKES_USAGE = {"vllm", "sglang"}
COUNT_TIMEOUT_S = 10.0  # for counting a prompt's tokens: an estimate is better than a long wait


@dataclass(frozen=True, slots=True)
class RunnerPolicy:
    """What is different with a llama-server that the model manager runs.

    Attributes:
        label: Its name at the start of error texts: "The llama-server of tiny".
        on_released: Called with each slot when it is released: its lease goes back to the manager.
        limit_names: Names of the settings that limit its time (see Peer).
    """

    label: str
    on_released: Callable[[AnySlot, Outcome], None]
    limit_names: Mapping[str, str]


class _SlotObserver(AttemptObserver):
    """Takes the times of one attempt, and releases its slot when its stream ends."""

    __slots__ = ("_clock", "_first_byte", "_receipt", "_slot")

    def __init__(self, clock: Clock, first_byte: Any, slot: AnySlot, receipt: Receipt) -> None:
        self._clock, self._first_byte, self._slot, self._receipt = clock, first_byte, slot, receipt

    def on_head(self) -> None:
        took_s = self._clock.monotonic_s() - self._slot.started_s
        self._first_byte.observe(took_s)
        self._receipt.upstream_ms = took_s * 1000

    def on_first_event(self) -> None:
        now_s = self._clock.monotonic_s()
        self._receipt.note_first_token(now_s)
        if self._slot.times is not None:
            self._slot.times.first_s = now_s

    def on_last_event(self) -> None:
        self._receipt.note_last_token(self._clock.monotonic_s())

    def on_stream_end(self, outcome: Outcome) -> None:
        self._slot.release(outcome)


class EngineServer:
    """A server of an engine.

    Attributes:
        shown_url: Its address for people, without what may be a key in it.
        state: Its health, load and limits.
        models: What it serves.
        stats: What the appliance counts of it.
        client: For the appliance's own queries.
        origin: `configured`, `runtime`, `persisted` or `managed`.

    With a `runner` policy the model manager runs it: it is never probed, and it is the very process that was
    started with its adapters.
    """

    is_remote: ClassVar[bool] = False
    is_direct: ClassVar[bool] = True
    is_demo: ClassVar[bool] = False

    def __init__(
        self,
        spec: BackendSpec,
        *,
        settings: EngineSettings,
        wire: ConnectionPool,
        clock: Clock,
        metrics: Metrics,
        callbacks: BackendCallbacks = NO_CALLBACKS,
        origin: str = "configured",
        runner: RunnerPolicy | None = None,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        self.spec, self.name, self.pool, self.origin = spec, spec.name, spec.pool, origin
        self.shown_url = public_address(spec.url)
        self.is_managed = runner is not None
        self.stats = BackendStats(spec.name, clock=clock, metrics=metrics, weight=spec.effective_weight)
        self.member = self.stats.member
        self.member.cost = spec.cost
        self.models = ServedModels(spec, created_s=int(clock.now_s()))
        self.state = ServerState(
            spec,
            settings=settings,
            models=self.models,
            member=self.member,
            clock=clock,
            callbacks=callbacks,
        )
        self.headers = _headers(spec)
        self.ssl = ssl_context
        self.target = Target.parse(
            spec.url,
            headers={**self.headers, "Content-Type": "application/json", "User-Agent": "inference-appliance"},
            ssl_context=ssl_context,
        )
        self.client: EngineClient = HttpEngineClient(wire, self.target)
        self._wire = wire
        self._clock = clock
        self._metrics = metrics
        self._callbacks = callbacks
        self._runner = runner
        self._label = runner.label if runner is not None else f"The backend {spec.name}"
        self._first_byte = metrics.upstream_seconds.labels(spec.name)
        self._model_peer = Peer(
            self._wire,
            self.target,
            self._label,
            partial(interpret_error, label=self._label),
            limit_names=OWN_LIMIT_NAMES if runner is None else runner.limit_names,
        )

    # ---- what it is

    @property
    def kind(self) -> str:
        """The kind of engine; `auto` until it is detected."""
        return self.state.kind

    @property
    def is_unknown(self) -> bool:
        """Whether what it serves is unknown: it was not reached yet, and no models are configured."""
        return self.models.is_unknown

    @property
    def in_flight(self) -> int:
        """Requests that it works on at this moment."""
        return self.member.active

    @property
    def context_tokens(self) -> int:
        """The context of one request in tokens; 0 = unknown."""
        return self.models.facts.context_tokens

    @property
    def measures_latencies(self) -> bool:
        """Whether the appliance measures response times: the engine has no histograms, or no metrics."""
        return self.kind not in MEASURING or self.state.load.note == "off"

    def cards(self) -> list[ModelCard]:
        """List the models that it serves."""
        return self.models.cards()

    def find_model(self, model: str) -> ServedModel | None:
        """Return the model of this name; None = it is not served."""
        return self.models.find(model)

    def status(self, now_s: float) -> BackendStatus:
        """Return whether a request can be sent now (see ServerState.status)."""
        return self.state.status(now_s)

    def apply(self, settings: EngineSettings, origin: str) -> None:
        """Take new settings."""
        self.origin = origin
        self.state.apply(settings)

    # ---- slots

    def take(self, reason: str) -> Slot[Self]:
        """Take a slot; if the circuit is half open, this request is its probe."""
        self.state.breaker.admit(self._clock.monotonic_s())
        return self._with_address(self.stats.open_slot(self, reason))

    def uncounted_slot(self) -> Slot[Self]:
        """Return a slot that takes no capacity, for a request about the server itself."""
        return self._with_address(self.stats.open_uncounted_slot(self))

    def _with_address(self, slot: Slot[Self]) -> Slot[Self]:
        slot.url, slot.headers, slot.ssl = self.spec.url, self.headers, self.ssl
        slot.attempt.endpoint = self.shown_url
        return slot

    async def prepare_passthrough(self, slot: AnySlot, model: str | None, options: RequestOptions) -> None:
        """Do nothing: its slots already have its address."""

    def record(self, slot: AnySlot, outcome: Outcome, retry_after_s: float | None) -> None:
        """Record how a request ended; called once, when its slot is released."""
        if slot.is_uncounted:
            self.stats.close_slot(slot, outcome)
            if outcome.breaker in {BreakerEffect.FAILED, BreakerEffect.UNDECIDED}:
                self.state.probe_soon()
            return
        try:
            self.stats.close_slot(slot, outcome)
            if outcome is Outcome.OK and slot.times is not None:
                self._add_latencies(slot, slot.times)
        finally:  # a measurement that fails keeps neither the lease nor the probe of the circuit
            slot.times = None  # its stream refers to the slot
            self.models.adapters.release(slot)
            if self._runner is not None:
                self._runner.on_released(slot, outcome)
            self.state.record(outcome, retry_after_s, slot.flow)
            self._callbacks.on_capacity()

    def _add_latencies(self, slot: AnySlot, times: ResponseTimes) -> None:
        receipt = times.receipt
        self._metrics.latencies.add(
            self.name,
            receipt.served_model,
            queue_s=receipt.queue_ms / 1000,
            whole_s=self._clock.monotonic_s() - slot.started_s,
            first_s=times.first_s - slot.started_s if times.first_s else None,
            tokens=times.tokens(),
        )

    # ---- sending

    async def send(self, request: EngineRequest, slot: AnySlot, *, budget_s: float) -> EngineReply:
        """Answer `request` by one attempt (see Backend.send).

        1. the attempt failed      → its outcome, and AttemptFailed
        2. the client's own fault  → refused, and that error
        3. a whole response        → ok
        4. a stream                → its slot is released when it is closed
        """
        served = self.models.find(request.wanted_model)
        upstream = self._begin_receipt(request, slot, served)
        outcome, failed, reply = Outcome.CANCELLED, None, None
        try:
            if served is None or served.extra or self.models.adapters.declared:
                await self._acquire_adapter(request.wanted_model, served, slot)
            call = self._call(request, served, upstream, budget_s)
            observer = _SlotObserver(self._clock, self._first_byte, slot, request.receipt)
            reply = await exchange(self._peer(served), call, request, slot.attempt, observer)
            outcome = Outcome.OK  # 3
            if slot.times is not None:
                slot.times.stream = reply.events
            return reply
        except AttemptFailed as exc:  # 1
            outcome, failed = exc.outcome, exc
            if outcome.breaker is BreakerEffect.UNDECIDED:
                exc.on_confirmed = self.state.confirm_failure
            raise
        except ApplianceError:  # 2
            outcome = Outcome.REFUSED
            raise
        finally:
            if reply is None or reply.events is None:  # 4
                slot.release(
                    outcome,
                    note=failed.note if failed else "",
                    retry_after_s=failed.retry_after_s if failed else None,
                )
            failed = None  # its traceback refers to this frame: a cycle

    async def count_tokens(self, model: str, body: dict[str, Any]) -> int | None:
        """Let the engine count the tokens of a chat's prompt (see TokenCounter)."""
        dialect, served = self.state.dialect, self.models.find(model)
        if not isinstance(dialect, TokenCountingDialect):
            return None
        await in_task()
        named = {**body, "model": served.upstream if served is not None else model}
        try:
            async with asyncio.timeout(COUNT_TIMEOUT_S):
                return await dialect.count_tokens(self.client, named)
        except (WireError, ValueError, TimeoutError) as error:
            log.debug("tokens not counted", backend=self.name, error=repr(error))
            return None

    def _begin_receipt(self, request: EngineRequest, slot: AnySlot, served: ServedModel | None) -> str:
        """Record server and attempt in the receipt; return the model's name at the server."""
        receipt = request.receipt
        upstream = served.upstream if served else request.model
        receipt.backend, receipt.served_model, receipt.endpoint = self.name, upstream, self.shown_url
        receipt.attempts.append(slot.attempt)
        slot.flow = request.options.flow
        if self.measures_latencies and request.operation is not Operation.EMBEDDING:
            slot.times = ResponseTimes(receipt)
        return upstream

    def _call(
        self, request: EngineRequest, served: ServedModel | None, upstream: str, budget_s: float
    ) -> UpstreamCall:
        """Return what is sent for `request`; a whole response may be gathered from a stream."""
        settings = self.state.settings
        wants_events = request.stream and settings.upstream_streaming != "simulate"
        is_gathered = not wants_events and self._must_stream(request)
        extra = served.extra if served else ()
        if request.native is not None:
            extra = (*extra, *spell_options(request.native, self.kind))
        body = render_body(
            request,
            upstream,
            wants_events=wants_events,
            extra=extra,
            is_gathered=is_gathered,
        )
        timeouts = Timeouts(
            min(settings.upstream_connect_timeout_s, budget_s),
            min(settings.upstream_first_byte_timeout_s, budget_s) if wants_events else budget_s,
            settings.upstream_idle_timeout_s,
            budget_s,
            settings.upstream_first_byte_timeout_s if wants_events else None,
            settings.backend_timeout_seconds if wants_events else None,
        )
        is_asked = (
            (self.kind in TAKES_USAGE or (request.meter is not None and self.kind != "llamacpp"))
            and wants_events
            and request.raw is not None
            and not self._model_peer.quirks.refuses_stream_options
        )
        asking = ask_for_usage(body) if is_asked else None
        path = b"/v1" + request.operation.path
        return UpstreamCall(
            path,
            asking or body,
            timeouts,
            request.public_model,
            wants_events or is_gathered,
            is_gathered,
            asking is not None,
        )

    def _must_stream(self, request: EngineRequest) -> bool:
        """Whether to ask for a stream although the client wants a whole response.

        See Dialect.stops_on_disconnect.
        """
        dialect = self.state.dialect
        return (
            dialect is not None
            and not dialect.stops_on_disconnect
            and request.operation is not Operation.EMBEDDING
        )

    async def _acquire_adapter(self, name: str, served: ServedModel | None, slot: AnySlot) -> None:
        """Make sure that the server has the adapter of a request, and mark it as in use.

        Raises:
            AttemptFailed: It does not have it, or it cannot be reached to ask for it.
        """
        name = served.card.id if served is not None else name
        dialect = self.state.dialect
        if (
            served is not None
            and served.extra
            and self._runner is None
            and isinstance(dialect, LoraDialect)
            and not await self._has_adapter(dialect, served)
        ):
            self.state.report_missing_adapter(name)
            raise adapter_missing(name, self._label)
        if served is None and name in self.models.adapters.declared:
            raise adapter_missing(name, self._label)  # it was unloaded since this server was chosen
        self.models.adapters.acquire(name, slot)

    async def _has_adapter(self, dialect: LoraDialect, served: ServedModel) -> bool:
        try:
            return await dialect.has_adapter(self.client, served)
        except WireError as error:
            raise AttemptFailed.of(error) from error

    def _peer(self, served: ServedModel | None) -> Peer:
        """Return the peer for a model, or for an adapter: then an error status may mean that it was lost."""
        if served is None or not served.card.parent:
            return self._model_peer
        name = served.card.id

        def refuse(status: int, headers: dict[str, str], text: str) -> Exception:
            if is_adapter_missing(status, text) and self.state.report_missing_adapter(name):
                return adapter_missing(name, self._label, note=text[:200], status=status)
            return interpret_error(status, headers, text, self._label)

        return replace(self._model_peer, refuse=refuse)

    async def look_up_name(self) -> None:
        """Look its name up again; if it has moved, later requests go to the new address."""
        if await self._wire.look_up(self.target):
            log.info("backend_moved", backend=self.name, host=self.target.origin[0])

    def fail_waiting(self) -> int:
        """Fail the requests that wait for its response: each may be retried elsewhere. Return how many."""
        return self._wire.fail_waiting(self.target.origin, f"{self.name} was found to be down")

    # ---- what it shows

    def describe(self) -> BackendState:
        """Return its current state, from memory."""
        now_s = self._clock.monotonic_s()
        state, member, breaker, load = self.state, self.member, self.state.breaker, self.state.load
        status, limit = state.status(now_s), state.limit(now_s)
        endpoint = {
            "url": self.shown_url,
            "rested_s": round(breaker.retry_in_s(now_s), 1),
            "failed_in_a_row": breaker.failures_in_a_row,
            "last_error": "",
        }
        return BackendState(
            self.name,
            self.kind,
            status in {BackendStatus.READY, BackendStatus.FULL},
            state.detail(status, now_s),
            (endpoint,),
            self.models.names(),
            self.in_flight,
            url=self.shown_url,
            pool=self.pool,
            standing=status.value,
            running=load.running,
            waiting=load.waiting,
            data_age_s=load.age_s(now_s),
            metrics=load.note,
            checked_at_s=state.checked_at_s,
            limit=int(limit) if math.isfinite(limit) else None,
            context_tokens=self.context_tokens,
            weight=member.weight,
            cost=self.spec.cost,
            chosen_total=member.total,
            mean_s=member.mean_s,
            last_s=member.last_s,
            last_used_at_s=member.last_used_s,
            breaker=breaker.state(now_s),
            errors=tuple(sorted(self.stats.errors.items())),
            origin=self.origin,
        )

    def engine_extras(self, kv_usage: float | None) -> EngineExtras:
        """Return what its metrics page does not show.

        Args:
            kv_usage: Share of its KV cache in use, 0 to 1, from its slots page; None = unknown.
        """
        adapters = self.models.adapter_names()
        return EngineExtras(kv_usage, adapters or None, len(adapters), self._clock.now_s())

    def measure(self) -> None:
        """Bring its gauges up to date; called when metrics are read."""
        state = self.describe()
        self._metrics.update_backend(state)
        self._metrics.breaker_open.labels(self.name, self.shown_url).set(
            0 if state.breaker == "closed" else 1
        )

    async def close(self) -> None:
        """Do nothing: its connections belong to the fleet's pool."""


def _headers(spec: BackendSpec) -> dict[str, str]:
    """Return the headers with its key, and register the key as a secret for the logs."""
    key = spec.api_key.get_secret_value()
    if not key:
        return {}
    SECRETS.learn([key])
    return {"Authorization": f"Bearer {key}"}
