"""The hosted backend: a paid OpenAI-compatible API, several endpoints tried in order until one answers.

Fail-over happens here, before the first byte has gone to the client, and nowhere after it. The key goes up; the client's
own key never does. Source: system A (endpoints, aliases), Novita's API pages (errors, streaming).
"""

import asyncio
from dataclasses import dataclass
from typing import Any, ClassVar

from appliance.base import jsons
from appliance.base.clock import Clock
from appliance.base.errors import ApplianceError, Forbidden, Invalid, TimedOut, Unavailable, UpstreamFailed
from appliance.base.logs import SECRETS
from appliance.base.metrics import Metrics
from appliance.base.wire import Response, Target, Wire, WireError
from appliance.engines.aliases import Names
from appliance.engines.breaker import Breaker
from appliance.engines.receipts import Attempt
from appliance.engines.relay import BrokenStream, StreamRelay
from appliance.engines.settings import EngineSettings
from appliance.engines.splice import with_model
from appliance.engines.types import BackendState, EngineReply, EngineRequest, ModelCard

NEXT_ENDPOINT = {404, 408, 429}         # and every 5xx: another endpoint may know better
NOTE_CHARACTERS = 800                   # of a failed endpoint's answer, kept in the attempts


@dataclass(slots=True)
class Endpoint:
    """One base address with its breaker and its numbers."""

    address: str
    target: Target
    breaker: Breaker
    last_error: str = ""


class _Failed(Exception):
    """This attempt failed in a way that lets the next endpoint try."""

    def __init__(self, outcome: str, note: str = "", *, status: int | None = None, retry_after_s: float | None = None,
                 counts: bool = True) -> None:
        super().__init__(outcome)
        self.outcome, self.note, self.status = outcome, note, status
        self.retry_after_s, self.counts = retry_after_s, counts


class HostedBackend:
    """Relays to the hosted API."""

    kind: ClassVar[str] = "hosted"

    def __init__(self, settings: EngineSettings, *, wire: Wire, clock: Clock, metrics: Metrics, name: str = "hosted") -> None:
        self.name = name
        self._settings = settings
        self._wire = wire
        self._clock = clock
        self._metrics = metrics
        self.names = Names(upstream=settings.upstream_base_model, public=settings.public_model, aliases=settings.model_aliases)
        headers = {"Authorization": f"Bearer {settings.novita_api_key.get_secret_value()}", "Content-Type": "application/json",
                   "User-Agent": "inference-appliance"}
        self._endpoints = [
            Endpoint(address, Target.parse(base_of(address), headers=headers), Breaker(settings.breaker_failures, settings.breaker_rest_s))
            for address in settings.novita_openai_endpoints
        ]
        self.in_flight = 0
        self._cards = [ModelCard(self.names.public, int(clock.now_s()), "novita", self.names.upstream, self.names.reported)]
        self._first_byte = metrics.upstream_seconds.labels(name)
        self._counters: dict[tuple[str, str], Any] = {}

    def cards(self) -> list[ModelCard]:
        return self._cards

    def serves(self, model: str) -> bool:
        return not model or not self._settings.model_strict or self.names.knows(model)

    def state(self) -> BackendState:
        now = self._clock.monotonic_s()
        rows = tuple({"url": e.address, "rested_s": round(e.breaker.wait_s(now), 1), "failed_in_a_row": e.breaker.failed_in_a_row,
                      "last_error": e.last_error} for e in self._endpoints)
        is_up = any(e.breaker.wait_s(now) == 0 for e in self._endpoints)
        detail = "" if is_up else "every endpoint is rested after failures"
        return BackendState(self.name, self.kind, is_up, detail, rows, (self.names.public,), self.in_flight)

    def measure(self) -> None:
        """Bring the gauges up to date: rested endpoints, the pool's connections. Called when metrics are read."""
        now = self._clock.monotonic_s()
        for endpoint in self._endpoints:
            self._metrics.breaker_open.labels(self.name, endpoint.address).set(1 if endpoint.breaker.wait_s(now) else 0)
        stats = self._wire.stats()
        for state in ("idle", "in_use", "waiting"):
            self._metrics.upstream_connections.labels(state).set(stats[state])

    async def close(self) -> None:
        await self._wire.close()

    async def send(self, request: EngineRequest) -> EngineReply:
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
        deadline = began + self._settings.upstream_total_timeout_s
        self.in_flight += 1
        reply = None
        try:
            for endpoint in self._endpoints:
                now = self._clock.monotonic_s()
                if now >= deadline:
                    raise self._out_of_time(request)
                if not endpoint.breaker.may_try(now):
                    continue
                reply = await self._attempt(endpoint, request, body, wants_events=wants_events, deadline_s=deadline)
                if reply is not None:
                    receipt.upstream_ms = (self._clock.monotonic_s() - began) * 1000
                    return reply
            if self._clock.monotonic_s() >= deadline:
                raise self._out_of_time(request)
            raise self._all_failed(request)
        finally:
            if reply is None or reply.events is None:       # else the stream counts until it is closed
                self.in_flight -= 1

    async def _attempt(self, endpoint: Endpoint, request: EngineRequest, body: bytes, *, wants_events: bool,
                       deadline_s: float) -> EngineReply | None:
        """Try one endpoint; None = the next one may try. The outcome goes into the receipt, the breaker and the metrics."""
        began = self._clock.monotonic_s()
        attempt = Attempt(endpoint.address, "cancelled")
        request.receipt.attempts.append(attempt)
        try:
            reply = await self._exchange(endpoint, request, body, attempt, wants_events=wants_events, began_s=began,
                                         budget_s=deadline_s - began)
        except (_Failed, WireError, BrokenStream, jsons.BadJson) as exc:
            failed = exc if isinstance(exc, _Failed) else _Failed(getattr(exc, "phase", "rubbish"), str(exc))
            attempt.outcome, attempt.note = failed.outcome, failed.note
            endpoint.last_error = f"{failed.outcome}: {failed.note}"[:200]
            if failed.counts:
                endpoint.breaker.failed(self._clock.monotonic_s(), retry_after_s=failed.retry_after_s)
            else:
                endpoint.breaker.abandoned()
            return None
        except ApplianceError as exc:       # the client's or the operator's fault: no other endpoint would say otherwise
            attempt.outcome, attempt.note = "refused", exc.message
            endpoint.breaker.succeeded()
            raise
        except BaseException:
            endpoint.breaker.abandoned()
            raise
        else:
            attempt.outcome = "ok"
            request.receipt.endpoint = endpoint.address
            endpoint.last_error = ""
            endpoint.breaker.succeeded()
            return reply
        finally:
            took_s = self._clock.monotonic_s() - began
            attempt.ms = took_s * 1000
            self._counter(endpoint.address, attempt.outcome).inc()

    async def _exchange(self, endpoint: Endpoint, request: EngineRequest, body: bytes, attempt: Attempt, *, wants_events: bool,
                        began_s: float, budget_s: float) -> EngineReply:
        settings = self._settings
        response = await self._wire.send(
            endpoint.target, method=b"POST", path=request.operation.value.encode(), body=body,
            connect_s=min(settings.upstream_connect_timeout_s, budget_s),
            first_byte_s=min(settings.upstream_first_byte_timeout_s, budget_s),
            idle_s=settings.upstream_idle_timeout_s, total_s=None if wants_events else budget_s)
        self._first_byte.observe(self._clock.monotonic_s() - began_s)
        reply = None
        try:
            attempt.status = response.status
            if response.status >= 300:
                await self._refuse(response)
            if wants_events and "event-stream" in response.headers.get("content-type", ""):
                reply = await self._stream(response, request)
            else:
                reply = self._whole(await response.read(), request)
            return reply
        finally:
            if reply is None or reply.events is None:
                response.close()

    async def _refuse(self, response: Response) -> None:
        """Raise what an error status means.

        1. 401                        the operator's key is wrong: 502 that names the variable
        2. 404, 408, 429, 5xx, 3xx    the next endpoint may try (3xx: we follow no redirects with a key in hand)
        3. other 4xx                  the client's: passed on in shape
        """
        status = response.status
        text = SECRETS.blank((await response.read())[:65536].decode("utf-8", "replace"))
        if status == 401:                                                                               # 1
            raise UpstreamFailed("The hosted API refused the key. Set NOVITA_API_KEY (or NOVITA_API_KEY_FILE) to a valid key.",
                                 code="upstream_key_refused")
        if status in NEXT_ENDPOINT or status >= 500 or status < 400:                                     # 2
            raise _Failed(f"status_{status}", text[:NOTE_CHARACTERS], status=status,
                          retry_after_s=retry_after_of(response.headers) if status in {429, 503} else None,
                          counts=status != 404)
        raise client_error_of(status, text)                                                             # 3

    def _whole(self, body: bytes, request: EngineRequest) -> EngineReply:
        """Check an answer in one piece, make its model name public, take its usage."""
        value = jsons.loads(body)
        if not isinstance(value, dict) or not ("choices" in value or "data" in value):
            raise _Failed("rubbish", SECRETS.blank(body[:NOTE_CHARACTERS].decode("utf-8", "replace")))
        take_usage(request, value.get("usage"))
        return EngineReply(body=with_model(body, value, self.names.public))

    async def _stream(self, response: Response, request: EngineRequest) -> EngineReply:
        """Wait for the first whole event, so that until then another endpoint may still answer."""
        relay = StreamRelay(self.names.public)
        first = b""
        while b"data:" not in first:            # comments are not yet an answer
            data = await response.next_piece()
            if data is None:
                raise _Failed("empty_stream", "the stream ended before its first event")
            first += relay.feed(data)
            if relay.error is not None:
                raise _Failed("error_event", SECRETS.blank(str(relay.error.get("message", "")))[:NOTE_CHARACTERS])
        return EngineReply(events=_Events(self, first, response, relay, request), content_type="text/event-stream; charset=utf-8")

    def _counter(self, endpoint: str, outcome: str) -> Any:
        key = (endpoint, outcome)
        if key not in self._counters:
            self._counters[key] = self._metrics.upstream_attempts.labels(self.name, endpoint, outcome)
        return self._counters[key]

    def _out_of_time(self, request: EngineRequest) -> TimedOut:
        return TimedOut(f"No endpoint of the hosted API answered within {self._settings.upstream_total_timeout_s:g} seconds "
                        "(UPSTREAM_TOTAL_TIMEOUT_S).", details={"attempts": attempts_of(request)})

    def _all_failed(self, request: EngineRequest) -> ApplianceError:
        now = self._clock.monotonic_s()
        soonest = min(e.breaker.wait_s(now) for e in self._endpoints)
        attempts = attempts_of(request)
        if not attempts:
            return Unavailable("Every endpoint of the hosted API is rested after failures; try again later.",
                               retry_after_s=soonest, details={"attempts": attempts})
        tried = len(attempts)
        return UpstreamFailed(
            f"novita_upstream_error: no endpoint of the hosted API could answer ({tried} tried, the last: {attempts[-1]['outcome']}).",
            code="novita_upstream_error", retry_after_s=soonest or None, details={"attempts": attempts})


class _Events:
    """The stream of one reply; closing it, at any time, ends the upstream call and settles the books."""

    def __init__(self, backend: HostedBackend, first: bytes, response: Response, relay: StreamRelay, request: EngineRequest) -> None:
        self._backend = backend
        self._first: bytes | None = first
        self._response = response
        self._relay = relay
        self._request = request
        self._is_closed = False

    @property
    def events(self) -> int:
        """How many events have gone through."""
        return self._relay.events

    def __aiter__(self) -> "_Events":
        return self

    async def __anext__(self) -> bytes:
        relay = self._relay
        if self._first is not None:
            first, self._first = self._first, None
            return first
        while not relay.is_done and not self._is_closed:
            try:
                data = await self._response.next_piece()
                out = relay.feed(data) if data is not None else b""
            except (WireError, BrokenStream) as exc:
                raise UpstreamFailed(f"The hosted API broke off its answer: {exc}", code="upstream_cut_off") from exc
            if relay.error is not None:
                message = SECRETS.blank(str(relay.error.get("message") or "unknown error"))
                raise UpstreamFailed(f"The hosted API ended its answer with an error: {message}", code="upstream_error_event")
            if out:
                return out
            if data is None:
                return self._last()
        await self.aclose()
        raise StopAsyncIteration

    def _last(self) -> bytes:
        """The connection ended without `[DONE]`: fine after a finish_reason, else the answer was cut off."""
        if not self._relay.has_finished:
            raise UpstreamFailed("The hosted API broke off its answer before it was complete.", code="upstream_cut_off")
        self._relay.is_done = True
        return b"data: [DONE]\n\n"

    async def aclose(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        self._backend.in_flight -= 1
        take_usage(self._request, self._relay.usage)
        try:
            if self._relay.is_done and not self._response.is_complete:
                # The closing chunk is usually one packet behind [DONE]; a moment's patience keeps the connection usable.
                await asyncio.wait_for(self._response.next_piece(), 0.1)
        except (TimeoutError, WireError):
            pass
        finally:
            self._response.close()


def base_of(address: str) -> str:
    """Give the base address; system A's lists may hold whole `/chat/completions` addresses."""
    return address.rstrip("/").removesuffix("/chat/completions")


def body_for(request: EngineRequest, upstream_model: str, *, wants_events: bool) -> bytes:
    """Give the bytes to send up: the client's own with `model` replaced; written anew where the dialect or `stream` differs."""
    body = request.body
    is_stream = bool(body.get("stream"))
    if request.raw is not None and is_stream == wants_events:
        return with_model(request.raw, body, upstream_model)
    changed = {**body, "model": upstream_model}
    if wants_events:
        changed["stream"] = True
    else:
        changed.pop("stream", None)
        changed.pop("stream_options", None)     # refused by APIs when no stream is asked for
    return jsons.dumps(changed)


def take_usage(request: EngineRequest, usage: Any) -> None:
    """Write the reported token counts into the receipt."""
    if isinstance(usage, dict):
        request.receipt.prompt_tokens = usage.get("prompt_tokens")
        request.receipt.completion_tokens = usage.get("completion_tokens")


def attempts_of(request: EngineRequest) -> list[dict[str, Any]]:
    """List the attempts as system A's error bodies do: url, and status and body, or error."""
    rows: list[dict[str, Any]] = []
    for a in request.receipt.attempts:
        row: dict[str, Any] = {"url": a.endpoint, "outcome": a.outcome}
        row |= {"status": a.status, "body": a.note} if a.status else {"error": a.note}
        rows.append(row)
    return rows


def retry_after_of(headers: dict[str, str]) -> float | None:
    """Read `Retry-After` in seconds; dates are not used by these APIs and give None."""
    try:
        return max(0.0, float(headers.get("retry-after", "")))
    except ValueError:
        return None


def client_error_of(status: int, text: str) -> ApplianceError:
    """Turn an upstream's 4xx into ours, with its own sentence, param and code."""
    try:
        value = jsons.loads(text)
    except jsons.BadJson:
        value = None
    error = value.get("error", value) if isinstance(value, dict) else None
    error = error if isinstance(error, dict) else {"message": str(error) if error else text}
    message = str(error.get("message") or f"The hosted API refused the request with status {status}.")
    kind = Forbidden if status == 403 else Invalid
    param, code = error.get("param"), error.get("code")
    raised = kind(message, param=param if isinstance(param, str) else None, code=code if isinstance(code, str) else None)
    raised.details["status"] = status
    return raised
