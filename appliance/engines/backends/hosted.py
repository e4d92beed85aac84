"""The hosted backend: a paid OpenAI-compatible API, several endpoints tried in order until one answers.

Fail-over between endpoints happens here, and only before the first byte was sent to the client. The API gets
the operator's key, never the client's.

Source: Novita's API pages (errors, streaming); docs/compatibility.md (endpoints, aliases).
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Self

from appliance.base.clock import Clock
from appliance.base.errors import ApplianceError, Exhausted, Kind, TimedOut, Unavailable, UpstreamFailed
from appliance.base.metrics.registry import Metrics
from appliance.base.plain_text import public_address
from appliance.base.wire.pool import ConnectionPool
from appliance.base.wire.types import Target, Timeouts
from appliance.engines.aliases import ModelNames
from appliance.engines.backends.breaker import Breaker
from appliance.engines.backends.contract import NO_CALLBACKS, BackendCallbacks
from appliance.engines.backends.stats import BackendStats
from appliance.engines.outcome import BreakerEffect, Outcome
from appliance.engines.receipts import Attempt, Receipt, attempt_rows
from appliance.engines.settings import EngineSettings
from appliance.engines.slots import AnySlot, Slot
from appliance.engines.types import (
    BackendState,
    BackendStatus,
    EngineReply,
    EngineRequest,
    ModelCard,
    RequestOptions,
    ServedModel,
)
from appliance.engines.upstream.attempt import NOTE_CHARACTERS, AttemptFailed
from appliance.engines.upstream.exchange import LIMIT_NAMES, AttemptObserver, Peer, UpstreamCall, exchange
from appliance.engines.upstream.refusal import (
    caller_error,
    find_caller_fault,
    parse_retry_after,
    redirect_failure,
)
from appliance.engines.upstream.request_body import ask_for_usage, render_body
from appliance.engines.upstream.spelling import spell_options

LABEL = "The hosted API"
API_LIMIT_NAMES = {**LIMIT_NAMES, "total": "UPSTREAM_TOTAL_TIMEOUT_S"}
RATE_LIMITED = 429  # says nothing about the endpoint's health: its circuit stays closed
NEXT_ENDPOINT = {404, 408, 429}  # and every 5xx: another endpoint may be able to answer
ERROR_CHARACTERS = 200  # of the last error of an endpoint
FAILURES = {
    Kind.UPSTREAM: Outcome.UPSTREAM,
    Kind.UNAVAILABLE: Outcome.UNAVAILABLE,
    Kind.TIMEOUT: Outcome.TIMEOUT,
    Kind.EXHAUSTED: Outcome.FULL,
}


@dataclass(slots=True)
class Endpoint:
    """One base address with its circuit breaker and its last error; `address`: as people may see it."""

    address: str
    peer: Peer
    breaker: Breaker
    last_error: str = ""


class _EndpointObserver(AttemptObserver):
    """Takes the times of one attempt, and releases the slot when a stream ends."""

    __slots__ = ("_clock", "_first_byte", "_receipt", "_slot", "_started_s")

    def __init__(
        self, clock: Clock, first_byte: Any, started_s: float, slot: AnySlot, receipt: Receipt
    ) -> None:
        self._clock, self._first_byte, self._started_s = clock, first_byte, started_s
        self._slot, self._receipt = slot, receipt

    def on_head(self) -> None:
        self._first_byte.observe(self._clock.monotonic_s() - self._started_s)

    def on_first_event(self) -> None:
        self._receipt.note_first_token(self._clock.monotonic_s())

    def on_last_event(self) -> None:
        self._receipt.note_last_token(self._clock.monotonic_s())

    def on_stream_end(self, outcome: Outcome) -> None:
        self._slot.release(outcome)


class HostedBackend:
    """Relays requests to the hosted API."""

    kind: ClassVar[str] = "hosted"
    pool: ClassVar[str] = "hosted"
    is_remote: ClassVar[bool] = True
    is_direct: ClassVar[bool] = False
    is_managed: ClassVar[bool] = False
    is_demo: ClassVar[bool] = False
    is_unknown: ClassVar[bool] = False
    context_tokens: ClassVar[int] = 0

    def __init__(
        self,
        settings: EngineSettings,
        *,
        wire: ConnectionPool,
        clock: Clock,
        metrics: Metrics,
        callbacks: BackendCallbacks = NO_CALLBACKS,
        name: str = "hosted",
    ) -> None:
        self.name = name
        self.stats = BackendStats(name, clock=clock, metrics=metrics)
        self.member = self.stats.member
        self.names = ModelNames(
            upstream=settings.upstream_base_model,
            public=settings.public_model,
            aliases=[alias for alias in settings.model_aliases if "=" not in alias],
        )
        self._settings = settings
        self._wire = wire
        self._clock = clock
        self._metrics = metrics
        self._callbacks = callbacks
        self._endpoints = _endpoints(settings, wire)
        card = ModelCard(
            self.names.public, int(clock.now_s()), "novita", self.names.upstream, self.names.reported
        )
        self._served = ServedModel(card, self.names.upstream)
        self._first_byte = metrics.upstream_seconds.labels(name)
        self._counters: dict[tuple[str, str], Any] = {}

    # ---- what it is

    @property
    def in_flight(self) -> int:
        """Requests that it works on at this moment."""
        return self.member.active

    def cards(self) -> list[ModelCard]:
        """List its one model."""
        return [self._served.card]

    def find_model(self, model: str) -> ServedModel | None:
        """Return its model for every name; with MODEL_STRICT only for its own names."""
        if not model or not self._settings.model_strict or self.names.matches(model):
            return self._served
        return None

    def status(self, now_s: float) -> BackendStatus:
        """Return READY: each endpoint has a circuit of its own (see `send`)."""
        return BackendStatus.READY

    # ---- slots

    def take(self, reason: str) -> Slot[Self]:
        """Take a slot; there is no limit."""
        return self.stats.open_slot(self, reason)

    def uncounted_slot(self) -> Slot[Self]:
        """Return a slot that takes no capacity."""
        return self.stats.open_uncounted_slot(self)

    async def prepare_passthrough(self, slot: AnySlot, model: str | None, options: RequestOptions) -> None:
        """Do nothing: it is never chosen for passthrough."""

    def record(self, slot: AnySlot, outcome: Outcome, retry_after_s: float | None) -> None:
        """Count the end of a request."""
        self.stats.close_slot(slot, outcome)
        self._callbacks.on_capacity()

    # ---- sending

    async def send(self, request: EngineRequest, slot: AnySlot, *, budget_s: float) -> EngineReply:
        """Answer `request` from the first endpoint that can.

        Returns:
            The reply.

        Raises:
            Invalid, Forbidden: The API refused the request (400, 403, 422 …).
            UpstreamFailed: All endpoints failed, or the key was refused.
            Unavailable: The circuits of all endpoints are open.
            TimedOut: The total budget is used up.
        """
        receipt = request.receipt
        receipt.backend, receipt.served_model = self.name, self.names.upstream
        wants_events = request.stream and self._settings.upstream_streaming != "simulate"
        extra = spell_options(request.native, "openai") if request.native is not None else ()
        body = render_body(request, self.names.upstream, wants_events=wants_events, extra=extra)
        is_paid = wants_events and request.meter is not None and request.raw is not None
        asking = ask_for_usage(body) if is_paid else None
        began_s = self._clock.monotonic_s()
        deadline_s = began_s + min(self._settings.upstream_total_timeout_s, budget_s)
        earlier = len(receipt.attempts)
        outcome, reply = Outcome.CANCELLED, None
        try:
            for endpoint in self._endpoints:
                now_s = self._clock.monotonic_s()
                if now_s >= deadline_s:
                    raise self._out_of_time(request)
                if not endpoint.breaker.admit(now_s):
                    continue
                reply = await self._attempt(
                    endpoint,
                    request,
                    slot,
                    asking or body,
                    wants_events=wants_events,
                    adds_usage=asking is not None,
                    deadline_s=deadline_s,
                )
                if reply is not None:
                    receipt.upstream_ms = (self._clock.monotonic_s() - began_s) * 1000
                    outcome = Outcome.OK
                    return reply
            if self._clock.monotonic_s() >= deadline_s:
                raise self._out_of_time(request)
            raise self._all_failed(receipt.attempts[earlier:])
        except ApplianceError as error:
            outcome = FAILURES.get(error.kind, Outcome.REFUSED)
            raise
        finally:
            if reply is None or reply.events is None:  # else the slot is released when the stream is closed
                slot.release(outcome)

    async def _attempt(
        self,
        endpoint: Endpoint,
        request: EngineRequest,
        slot: AnySlot,
        body: bytes,
        *,
        wants_events: bool,
        adds_usage: bool,
        deadline_s: float,
    ) -> EngineReply | None:
        """Try one endpoint; None = the next one may try.

        The outcome is recorded in the receipt, the circuit breaker and the metrics.

        1. the attempt failed                        → the next endpoint may try
        2. the client's or the operator's own fault  → that error: every endpoint would answer the same
        3. it was cancelled                          → no result for the circuit breaker
        4. it answered                               → the reply
        """
        began_s = self._clock.monotonic_s()
        attempt = Attempt(endpoint.address)
        request.receipt.attempts.append(attempt)
        settings, budget_s = self._settings, deadline_s - began_s
        try:
            timeouts = Timeouts(
                min(settings.upstream_connect_timeout_s, budget_s),
                min(settings.upstream_first_byte_timeout_s, budget_s),
                settings.upstream_idle_timeout_s,
                budget_s,
                settings.upstream_first_byte_timeout_s if wants_events else None,
                settings.upstream_total_timeout_s if wants_events else None,
            )
            call = UpstreamCall(
                request.operation.path,
                body,
                timeouts,
                request.public_model or self.names.public,
                wants_events,
                adds_usage=adds_usage,
            )
            observer = _EndpointObserver(self._clock, self._first_byte, began_s, slot, request.receipt)
            reply = await exchange(endpoint.peer, call, request, attempt, observer)
        except AttemptFailed as failed:  # 1
            self._record_failure(endpoint, attempt, failed)
            return None
        except ApplianceError as exc:  # 2
            attempt.outcome, attempt.note = Outcome.REFUSED, exc.message
            endpoint.breaker.record_success()
            raise
        except BaseException:  # 3
            endpoint.breaker.release_probe()
            raise
        else:  # 4
            attempt.outcome = Outcome.OK
            request.receipt.endpoint = endpoint.address
            endpoint.last_error = ""
            endpoint.breaker.record_success()
            return reply
        finally:
            attempt.ms = (self._clock.monotonic_s() - began_s) * 1000
            self._counter(endpoint.address, attempt.label).inc()

    def _record_failure(self, endpoint: Endpoint, attempt: Attempt, failed: AttemptFailed) -> None:
        attempt.outcome, attempt.note = failed.outcome, failed.note
        attempt.retry_after_s = failed.retry_after_s
        endpoint.last_error = f"{failed.label}: {failed.note}"[:ERROR_CHARACTERS]
        is_failure = failed.outcome.breaker in {BreakerEffect.FAILED, BreakerEffect.UNDECIDED}
        if is_failure and failed.status != RATE_LIMITED:
            endpoint.breaker.record_failure(self._clock.monotonic_s(), retry_after_s=failed.retry_after_s)
        else:
            endpoint.breaker.release_probe()

    def _counter(self, endpoint: str, outcome: str) -> Any:
        key = (endpoint, outcome)
        if key not in self._counters:
            self._counters[key] = self._metrics.upstream_attempts.labels(self.name, endpoint, outcome)
        return self._counters[key]

    def _out_of_time(self, request: EngineRequest) -> TimedOut:
        return TimedOut(
            "No endpoint of the hosted API answered within "
            f"{self._settings.upstream_total_timeout_s:g} seconds (UPSTREAM_TOTAL_TIMEOUT_S).",
            details={"attempts": attempt_rows(request.receipt.attempts)},
        )

    def _all_failed(self, own: list[Attempt]) -> ApplianceError:
        """Return the error for a request that no endpoint answered; no attempt: all circuits are open."""
        now_s = self._clock.monotonic_s()
        retry_in_s = min(endpoint.breaker.retry_in_s(now_s) for endpoint in self._endpoints)
        attempts = attempt_rows(own)
        if not attempts:
            return Unavailable(
                "The circuits of all endpoints of the hosted API are open after failures; "
                f"retrying in {retry_in_s:.0f} s.",
                retry_after_s=retry_in_s,
                details={"attempts": attempts},
            )
        if all(attempt.status == RATE_LIMITED for attempt in own):
            waits = [attempt.retry_after_s for attempt in own if attempt.retry_after_s is not None]
            return Exhausted(
                f"The hosted API limits the rate: {len(attempts)} of its endpoints answered 429.",
                retry_after_s=min(waits, default=None),
                details={"attempts": attempts},
            )
        last = own[-1]  # its note is said where no response came, of a redirect, and of an error in a 200
        is_said = (last.status or 300) // 100 == 3 or last.outcome is Outcome.ERROR_EVENT
        cause = f", {last.note}" if is_said and last.note else ""
        return UpstreamFailed(
            f"novita_upstream_error: no endpoint of the hosted API could answer "
            f"({len(attempts)} tried, the last: {attempts[-1]['outcome']}{cause}).",
            code="novita_upstream_error",
            retry_after_s=retry_in_s or None,
            details={"attempts": attempts},
        )

    # ---- what it shows

    def describe(self) -> BackendState:
        """Return its current state, from memory; it is up while the circuit of one endpoint is not open."""
        now_s = self._clock.monotonic_s()
        rows = tuple(
            {
                "url": endpoint.address,
                "rested_s": round(endpoint.breaker.retry_in_s(now_s), 1),
                "failed_in_a_row": endpoint.breaker.failures_in_a_row,
                "last_error": endpoint.last_error,
            }
            for endpoint in self._endpoints
        )
        retry_in_s = min(endpoint.breaker.retry_in_s(now_s) for endpoint in self._endpoints)
        is_up, member = retry_in_s == 0, self.member
        return BackendState(
            self.name,
            self.kind,
            is_up,
            "" if is_up else f"all circuits open after failures, retrying in {retry_in_s:.0f} s",
            rows,
            (self.names.public,),
            self.in_flight,
            url=self._endpoints[0].address,
            pool=self.pool,
            standing=(BackendStatus.READY if is_up else BackendStatus.CIRCUIT_OPEN).value,
            breaker="closed" if is_up else "open",
            chosen_total=member.total,
            mean_s=member.mean_s,
            last_s=member.last_s,
            last_used_at_s=member.last_used_s,
            errors=tuple(self.stats.errors.items()),
        )

    def measure(self) -> None:
        """Bring its gauges up to date; called when metrics are read."""
        now_s = self._clock.monotonic_s()
        for endpoint in self._endpoints:
            is_open = endpoint.breaker.retry_in_s(now_s) > 0
            self._metrics.breaker_open.labels(self.name, endpoint.address).set(1 if is_open else 0)
        self._metrics.update_backend(self.describe())

    def connections(self) -> dict[str, int]:
        """Return the numbers of its connection pool (see ConnectionPool.stats)."""
        return self._wire.stats()

    async def close(self) -> None:
        """Close its connections."""
        await self._wire.close()


def _endpoints(settings: EngineSettings, wire: ConnectionPool) -> list[Endpoint]:
    headers = {
        "Authorization": f"Bearer {settings.novita_api_key.get_secret_value()}",
        "Content-Type": "application/json",
        "User-Agent": "inference-appliance",
    }
    return [
        Endpoint(
            public_address(address),
            Peer(
                wire,
                Target.parse(base_address(address), headers=headers),
                LABEL,
                map_error,
                limit_names=API_LIMIT_NAMES,
            ),
            Breaker(settings.breaker_failures, settings.breaker_rest_s),
        )
        for address in settings.novita_openai_endpoints
    ]


def base_address(address: str) -> str:
    """Return the base of an address; a whole `/chat/completions` address is accepted, too."""
    return address.rstrip("/").removesuffix("/chat/completions")


def map_error(status: int, headers: dict[str, str], text: str) -> Exception:
    """Return the exception for an error status.

    1. 401                        the operator's key is wrong: 502 that names the variable
    2. 500 for what every endpoint would refuse (engines/upstream/error_texts.py): the client's fault
    3. 3xx                        the next endpoint may try: a redirect would send the key elsewhere
    4. 404, 408, 429, 5xx         the next endpoint may try
    5. other 4xx                  the client's fault: passed on as OpenAI's error object
    """
    if status == 401:  # 1
        return UpstreamFailed(
            "The hosted API refused the key. Set NOVITA_API_KEY (or NOVITA_API_KEY_FILE) to a valid key.",
            code="upstream_key_refused",
        )
    if (fault := find_caller_fault(status, text)) is not None:  # 2
        return fault
    if status < 400:  # 3
        return redirect_failure(status, headers, LABEL)
    if status in NEXT_ENDPOINT or status >= 500:  # 4
        return AttemptFailed(
            Outcome.NOT_FOUND if status == 404 else Outcome.STATUS,
            text[:NOTE_CHARACTERS],
            status=status,
            retry_after_s=parse_retry_after(headers) if status in {429, 503} else None,
        )
    return caller_error(status, text, LABEL)  # 5
