"""The hosted backend: a paid OpenAI-compatible API, several endpoints tried in order until one answers.

Fail-over among endpoints happens here, before the first byte has gone to the client, and nowhere after it. The key goes up; the
client's own key never does. Source: system A (endpoints, aliases), Novita's API pages (errors, streaming).
"""

from dataclasses import dataclass
from typing import Any, ClassVar

from appliance.base import jsons
from appliance.base.clock import Clock
from appliance.base.errors import ApplianceError, Kind, TimedOut, Unavailable, UpstreamFailed
from appliance.base.metrics.registry import Metrics
from appliance.base.wire.pool import ConnectionPool
from appliance.base.wire.types import Target, Timeouts, WireError
from appliance.engines.aliases import Names
from appliance.engines.backends.breaker import Breaker
from appliance.engines.outcome import BreakerEffect, Outcome
from appliance.engines.receipts import Attempt, attempt_rows
from appliance.engines.settings import EngineSettings
from appliance.engines.slots import AnySlot, BackendStats
from appliance.engines.types import (
    BackendState,
    BackendStatus,
    EngineReply,
    EngineRequest,
    ModelCard,
    ServedModel,
)
from appliance.engines.upstream.exchange import (
    NOTE_CHARACTERS,
    AttemptFailed,
    Peer,
    body_for,
    client_error_of,
    exchange,
    retry_after_of,
)
from appliance.engines.upstream.relay import BrokenStream

LABEL = "The hosted API"
NEXT_ENDPOINT = {404, 408, 429}  # and every 5xx: another endpoint may know better
# What a failure of the whole API counts as; any other error is the caller's own fault.
FAILURES = {
    Kind.UPSTREAM: Outcome.UPSTREAM,
    Kind.UNAVAILABLE: Outcome.UNAVAILABLE,
    Kind.TIMEOUT: Outcome.TIMEOUT,
}


@dataclass(slots=True)
class Endpoint:
    """One base address with its breaker and its numbers."""

    address: str
    peer: Peer
    breaker: Breaker
    last_error: str = ""


class HostedBackend(BackendStats):
    """Relays to the hosted API."""

    kind: ClassVar[str] = "hosted"
    is_remote: ClassVar[bool] = True
    context_tokens: ClassVar[int] = 0

    def __init__(
        self,
        settings: EngineSettings,
        *,
        wire: ConnectionPool,
        clock: Clock,
        metrics: Metrics,
        name: str = "hosted",
    ) -> None:
        super().__init__(name, pool="hosted", clock=clock, metrics=metrics)
        self._settings = settings
        self._wire = wire
        self.names = Names(
            upstream=settings.upstream_base_model,
            public=settings.public_model,
            aliases=[alias for alias in settings.model_aliases if "=" not in alias],
        )
        headers = {
            "Authorization": f"Bearer {settings.novita_api_key.get_secret_value()}",
            "Content-Type": "application/json",
            "User-Agent": "inference-appliance",
        }
        self._endpoints = [
            Endpoint(
                address,
                Peer(wire, Target.parse(base_of(address), headers=headers), LABEL, refusal),
                Breaker(settings.breaker_failures, settings.breaker_rest_s),
            )
            for address in settings.novita_openai_endpoints
        ]
        self._cards = [
            ModelCard(
                self.names.public, int(clock.now_s()), "novita", self.names.upstream, self.names.reported
            )
        ]
        self._served = ServedModel(self._cards[0], self.names.upstream)
        self._first_byte = metrics.upstream_seconds.labels(name)
        self._counters: dict[tuple[str, str], Any] = {}

    def cards(self) -> list[ModelCard]:
        return self._cards

    def find_model(self, model: str) -> ServedModel | None:
        return (
            self._served
            if not model or not self._settings.model_strict or self.names.matches(model)
            else None
        )

    def status(self, now_s: float) -> BackendStatus:
        """Ready: resting endpoints are its own affair, and a request that meets only those is told so."""
        return BackendStatus.READY

    def state(self) -> BackendState:
        now = self._clock.monotonic_s()
        rows = tuple(
            {
                "url": e.address,
                "rested_s": round(e.breaker.wait_s(now), 1),
                "failed_in_a_row": e.breaker.failed_in_a_row,
                "last_error": e.last_error,
            }
            for e in self._endpoints
        )
        is_up = any(e.breaker.wait_s(now) == 0 for e in self._endpoints)
        detail = "" if is_up else "every endpoint is rested after failures"
        member = self.member
        return BackendState(
            self.name,
            self.kind,
            is_up,
            detail,
            rows,
            (self.names.public,),
            self.in_flight,
            url=self._endpoints[0].address,
            pool=self.pool,
            standing="ready" if is_up else BackendStatus.CIRCUIT_OPEN.value,
            breaker="closed" if is_up else "open",
            chosen_total=member.total,
            mean_s=member.mean_s,
            last_s=member.last_s,
            last_used_at_s=member.last_used_s,
            errors=tuple(self.errors.items()),
        )

    def measure(self) -> None:
        """Bring the gauges up to date: rested endpoints, the pool's connections. Called when metrics are read."""
        now = self._clock.monotonic_s()
        for endpoint in self._endpoints:
            self._metrics.breaker_open.labels(self.name, endpoint.address).set(
                1 if endpoint.breaker.wait_s(now) else 0
            )
        self._metrics.update_backend(self.state())

    def connections(self) -> dict[str, int]:
        """Give the numbers of its connection pool (see Wire.stats)."""
        return self._wire.stats()

    async def close(self) -> None:
        await self._wire.close()

    async def send(self, request: EngineRequest, slot: AnySlot, *, budget_s: float) -> EngineReply:
        """Answer `request` from the first endpoint that can.

        Gives   EngineReply (see its docstring); 400, 403, 422 … of the upstream as they are, in shape
        Raises  UpstreamFailed: all endpoints failed, or the key was refused · Unavailable: all are rested · TimedOut: the
                total budget is gone
        """
        receipt = request.receipt
        receipt.backend, receipt.served_model = self.name, self.names.upstream
        wants_events = request.stream and self._settings.upstream_streaming != "simulate"
        body = body_for(request, self.names.upstream, wants_events=wants_events)
        began = self._clock.monotonic_s()
        deadline = began + min(self._settings.upstream_total_timeout_s, budget_s)
        before = len(receipt.attempts)
        outcome = Outcome.CANCELLED
        reply = None
        try:
            for endpoint in self._endpoints:
                now = self._clock.monotonic_s()
                if now >= deadline:
                    raise self._out_of_time(request)
                if not endpoint.breaker.may_try(now):
                    continue
                reply = await self._attempt(
                    endpoint, request, slot, body, wants_events=wants_events, deadline_s=deadline
                )
                if reply is not None:
                    receipt.upstream_ms = (self._clock.monotonic_s() - began) * 1000
                    outcome = Outcome.OK
                    return reply
            if self._clock.monotonic_s() >= deadline:
                raise self._out_of_time(request)
            raise self._all_failed(receipt.attempts[before:])
        except ApplianceError as error:
            outcome = FAILURES.get(error.kind, Outcome.REFUSED)
            raise
        finally:
            if reply is None or reply.events is None:  # else the stream counts until it is closed
                slot.release(outcome)

    async def _attempt(
        self,
        endpoint: Endpoint,
        request: EngineRequest,
        slot: AnySlot,
        body: bytes,
        *,
        wants_events: bool,
        deadline_s: float,
    ) -> EngineReply | None:
        """Try one endpoint; None = the next one may try. The outcome goes into the receipt, the breaker and the metrics."""
        began = self._clock.monotonic_s()
        attempt = Attempt(endpoint.address)
        request.receipt.attempts.append(attempt)
        settings, budget_s = self._settings, deadline_s - began
        try:
            reply = await exchange(
                endpoint.peer,
                request,
                body,
                attempt,
                path=request.operation.value.encode(),
                wants_events=wants_events,
                public_model=request.public_model or self.names.public,
                on_end=slot.release,
                on_head=lambda: self._first_byte.observe(self._clock.monotonic_s() - began),
                timeouts=Timeouts(
                    min(settings.upstream_connect_timeout_s, budget_s),
                    min(settings.upstream_first_byte_timeout_s, budget_s),
                    settings.upstream_idle_timeout_s,
                    None if wants_events else budget_s,
                ),
            )
        except (AttemptFailed, WireError, BrokenStream, jsons.InvalidJson) as exc:
            failed = (
                exc
                if isinstance(exc, AttemptFailed)
                else AttemptFailed(
                    Outcome.of_phase(exc.phase) if isinstance(exc, WireError) else Outcome.INVALID_RESPONSE,
                    str(exc),
                )
            )
            attempt.outcome, attempt.note = failed.outcome, failed.note
            endpoint.last_error = f"{failed.label}: {failed.note}"[:200]
            if failed.outcome.breaker is BreakerEffect.FAILED:
                endpoint.breaker.failed(self._clock.monotonic_s(), retry_after_s=failed.retry_after_s)
            else:
                endpoint.breaker.abandoned()
            return None
        except (
            ApplianceError
        ) as exc:  # the client's or the operator's fault: no other endpoint would say otherwise
            attempt.outcome, attempt.note = Outcome.REFUSED, exc.message
            endpoint.breaker.succeeded()
            raise
        except BaseException:
            endpoint.breaker.abandoned()
            raise
        else:
            attempt.outcome = Outcome.OK
            request.receipt.endpoint = endpoint.address
            endpoint.last_error = ""
            endpoint.breaker.succeeded()
            return reply
        finally:
            took_s = self._clock.monotonic_s() - began
            attempt.ms = took_s * 1000
            self._counter(endpoint.address, attempt.label).inc()

    def _counter(self, endpoint: str, outcome: str) -> Any:
        key = (endpoint, outcome)
        if key not in self._counters:
            self._counters[key] = self._metrics.upstream_attempts.labels(self.name, endpoint, outcome)
        return self._counters[key]

    def _out_of_time(self, request: EngineRequest) -> TimedOut:
        return TimedOut(
            f"No endpoint of the hosted API answered within {self._settings.upstream_total_timeout_s:g} seconds "
            "(UPSTREAM_TOTAL_TIMEOUT_S).",
            details={"attempts": attempt_rows(request.receipt.attempts)},
        )

    def _all_failed(self, own: list[Attempt]) -> ApplianceError:
        now = self._clock.monotonic_s()
        soonest = min(e.breaker.wait_s(now) for e in self._endpoints)
        attempts = attempt_rows(own)
        if not attempts:
            return Unavailable(
                "Every endpoint of the hosted API is rested after failures; try again later.",
                retry_after_s=soonest,
                details={"attempts": attempts},
            )
        tried = len(attempts)
        return UpstreamFailed(
            f"novita_upstream_error: no endpoint of the hosted API could answer ({tried} tried, the last: {attempts[-1]['outcome']}).",
            code="novita_upstream_error",
            retry_after_s=soonest or None,
            details={"attempts": attempts},
        )


def base_of(address: str) -> str:
    """Give the base address; system A's lists may hold whole `/chat/completions` addresses."""
    return address.rstrip("/").removesuffix("/chat/completions")


def refusal(status: int, headers: dict[str, str], text: str) -> Exception:
    """Give what an error status means.

    1. 401                        the operator's key is wrong: 502 that names the variable
    2. 404, 408, 429, 5xx, 3xx    the next endpoint may try (3xx: we follow no redirects with a key in hand)
    3. other 4xx                  the client's: passed on in shape
    """
    if status == 401:  # 1
        return UpstreamFailed(
            "The hosted API refused the key. Set NOVITA_API_KEY (or NOVITA_API_KEY_FILE) to a valid key.",
            code="upstream_key_refused",
        )
    if status in NEXT_ENDPOINT or status >= 500 or status < 400:  # 2
        return AttemptFailed(
            Outcome.NOT_FOUND if status == 404 else Outcome.STATUS,
            text[:NOTE_CHARACTERS],
            status=status,
            retry_after_s=retry_after_of(headers) if status in {429, 503} else None,
        )
    return client_error_of(status, text, LABEL)  # 3
