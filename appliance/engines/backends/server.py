"""One server of an engine: how it is asked about itself, told to do something, and how a request is sent to it, in one attempt.

What is known of it, and so whether a request may be sent, is in known.py.
"""

import ssl
from typing import ClassVar, Self

from appliance.base import jsons
from appliance.base.clock import Clock
from appliance.base.errors import ApplianceError
from appliance.base.logs import SECRETS
from appliance.base.metrics.registry import Metrics
from appliance.base.wire.pool import ConnectionPool
from appliance.base.wire.types import Target, Timeouts, WireError
from appliance.engines.backends.adapters import is_missing, missing
from appliance.engines.backends.server_state import ServerState
from appliance.engines.dialects.contract import LoraDialect
from appliance.engines.dialects.query import HttpEngineClient
from appliance.engines.outcome import Outcome
from appliance.engines.settings import EngineSettings
from appliance.engines.slots import AnySlot, ResponseTimes, Slot
from appliance.engines.specs import BackendSpec
from appliance.engines.types import EngineReply, EngineRequest, Operation, ServedModel
from appliance.engines.upstream.exchange import AttemptFailed, Peer, body_for, exchange
from appliance.engines.upstream.refusal import meaning
from appliance.engines.upstream.relay import BrokenStream


class EngineServer(ServerState):
    """A server: what we know of it, and the way to it."""

    is_remote: ClassVar[bool] = False
    is_direct: ClassVar[bool] = True
    _asks_first: ClassVar[bool] = (
        True  # whether it may be another process than the one that told of its adapters
    )

    def __init__(
        self,
        spec: BackendSpec,
        *,
        settings: EngineSettings,
        wire: ConnectionPool,
        clock: Clock,
        metrics: Metrics,
        origin: str = "configured",
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        super().__init__(spec, settings=settings, clock=clock, metrics=metrics, origin=origin)
        self._wire = wire
        key = spec.api_key.get_secret_value()
        if key:
            SECRETS.learn([key])
        self.headers = {"Authorization": f"Bearer {key}"} if key else {}
        self.ssl = ssl_context
        self.target = Target.parse(
            spec.url,
            headers={**self.headers, "Content-Type": "application/json", "User-Agent": "inference-appliance"},
            ssl_context=ssl_context,
        )
        self.client = HttpEngineClient(wire, self.target)
        self._label = f"The backend {spec.name}"
        self._first_byte = metrics.upstream_seconds.labels(spec.name)

    def fail_waiting(self) -> int:
        """End the exchanges that wait for its answer; each goes to another server. Gives how many."""
        return self._wire.fail_waiting(self.target.origin, f"{self.name} was found to be down")

    # ---- answering

    def take(self, reason: str) -> Slot[Self]:
        """Take a place; where the breaker is half open, this request is its probe."""
        self.breaker.may_try(self._clock.monotonic_s())
        return self._addressed(super().take(reason))

    def uncounted_slot(self) -> Slot[Self]:
        return self._addressed(super().uncounted_slot())

    def _addressed(self, slot: Slot[Self]) -> Slot[Self]:
        slot.url, slot.headers, slot.ssl = self.spec.url, self.headers, self.ssl
        slot.attempt.endpoint = self.spec.url
        return slot

    def _must_stream(self, request: EngineRequest) -> bool:
        """Whether an answer that is wanted in one piece is asked for as a stream all the same: see Dialect.stops_on_disconnect."""
        return (
            self.dialect is not None
            and not self.dialect.stops_on_disconnect
            and request.operation is not Operation.EMBEDDING
        )

    async def send(self, request: EngineRequest, slot: AnySlot, *, budget_s: float) -> EngineReply:
        """Answer `request` by one attempt (see Backend.send)."""
        receipt, settings = request.receipt, self.settings
        served = self.find_model(request.wanted_model)
        upstream = served.upstream if served else request.model
        receipt.backend, receipt.served_model, receipt.endpoint = self.name, upstream, self.spec.url
        receipt.attempts.append(slot.attempt)
        wants_events = request.stream and settings.upstream_streaming != "simulate"
        gathers = not wants_events and self._must_stream(request)
        outcome, failed, reply = Outcome.CANCELLED, None, None
        if self.measures_latencies and request.operation is not Operation.EMBEDDING:
            slot.times = ResponseTimes(receipt)
        try:
            if served is None or served.extra or self.adapters.declared:
                await self._hold(request.wanted_model, served, slot)
            body = body_for(
                request,
                upstream,
                wants_events=wants_events,
                extra=served.extra if served else (),
                gathers=gathers,
            )
            first_byte_s = min(settings.upstream_first_byte_timeout_s, budget_s) if wants_events else budget_s
            reply = await exchange(
                self._peer(served),
                request,
                body,
                slot.attempt,
                path=b"/v1" + request.operation.value.encode(),
                wants_events=wants_events or gathers,
                gathers=gathers,
                public_model=request.public_model,
                on_head=lambda: self._saw_head(slot, request),
                on_first=lambda: self._saw_first(slot),
                on_end=slot.release,
                timeouts=Timeouts(
                    min(settings.upstream_connect_timeout_s, budget_s),
                    first_byte_s,
                    settings.upstream_idle_timeout_s,
                    None if wants_events else budget_s,
                ),
            )
            outcome = Outcome.OK
            if slot.times is not None:
                slot.times.stream = reply.events
            return reply
        except AttemptFailed as exc:
            outcome, failed = exc.outcome, exc
            raise
        except WireError as exc:
            outcome = Outcome.of_phase(exc.phase)
            failed = AttemptFailed(outcome, str(exc), was_sent=exc.was_sent)
            raise failed from exc
        except (BrokenStream, jsons.InvalidJson) as exc:
            outcome = Outcome.INVALID_RESPONSE
            failed = AttemptFailed(outcome, str(exc))
            raise failed from exc
        except ApplianceError:
            outcome = Outcome.REFUSED
            raise
        finally:
            if reply is None or reply.events is None:  # else the stream holds its place until it is closed
                slot.release(
                    outcome,
                    note=failed.note if failed else "",
                    retry_after_s=failed.retry_after_s if failed else None,
                )

    def _saw_head(self, slot: AnySlot, request: EngineRequest) -> None:
        took_s = self._clock.monotonic_s() - slot.started_s
        self._first_byte.observe(took_s)
        request.receipt.upstream_ms = took_s * 1000

    async def _hold(self, name: str, served: ServedModel | None, slot: AnySlot) -> None:
        """See to it that a declared adapter, or one that the body names, is there to answer. Raises AttemptFailed, WireError."""
        name = served.card.id if served is not None else name
        if (
            served is not None
            and served.extra
            and self._asks_first
            and isinstance(self.dialect, LoraDialect)
            and not await self.dialect.has_adapter(self.client, served)
        ):
            self.report_missing_adapter(name)
            raise missing(name, self._label)
        if served is None and name in self.adapters.declared:
            raise missing(name, self._label)  # it went since this server was chosen
        self.adapters.acquire(name, slot)

    def _saw_first(self, slot: AnySlot) -> None:
        if slot.times is not None:
            slot.times.first_s = self._clock.monotonic_s()

    def _peer(self, served: ServedModel | None = None) -> Peer:
        name = served.card.id if served is not None and served.card.parent else ""

        def refuse(status: int, headers: dict[str, str], text: str) -> Exception:
            if name and is_missing(status, text) and self.report_missing_adapter(name):
                return missing(name, self._label, note=text[:200], status=status)
            return meaning(status, headers, text, self._label)

        return Peer(self._wire, self.target, self._label, refuse)

    async def close(self) -> None:
        """Its connections belong to the fleet's wire."""
