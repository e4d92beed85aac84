"""Which backend answers a request: one with capacity, after a wait if none has any; another if it fails.

A route is a list of stages, tried in order: a pool, then the pool that it overflows into, and so on. The
cases of a choice are numbered in `_choose` and `_pick`, those of a failure in `_allow_retry`. Nothing here
reads a socket, and no request waits for a health probe.
"""

import asyncio

from appliance.base.clock import Clock
from appliance.base.errors import ApplianceError, Kind
from appliance.base.inline import in_task
from appliance.base.metrics.registry import Metrics
from appliance.base.retry_budget import RetryBudget
from appliance.engines.backends.contract import Backend
from appliance.engines.billing import RequestMeter
from appliance.engines.dispatch_errors import (
    Failure,
    all_failed,
    estimate_retry_after_s,
    no_backend,
    overflow_reason,
    queue_full,
    queue_timeout,
)
from appliance.engines.dispatch_request import DispatchRequest
from appliance.engines.left_streams import LeftStreams
from appliance.engines.metered_stream import MeteredStream, read_usage
from appliance.engines.outcome import Outcome, Retry
from appliance.engines.pool import Pool
from appliance.engines.receipts import Receipt
from appliance.engines.settings import EngineSettings
from appliance.engines.slots import Slot
from appliance.engines.types import BackendStatus, Billing, EngineReply, EngineRequest, Operation
from appliance.engines.upstream.attempt import AttemptFailed
from appliance.engines.upstream.token_counts import count_text_bytes
from appliance.engines.wait_queues import WaitQueues

# Errors that a hosted API raises itself, after which another stage may try.
RETRYABLE_KINDS = {Kind.UPSTREAM, Kind.UNAVAILABLE, Kind.TIMEOUT, Kind.EXHAUSTED}


class Dispatcher:
    """Send requests to backends. Decisions never await; only a response and the queue do."""

    def __init__(self, settings: EngineSettings, *, clock: Clock, metrics: Metrics) -> None:
        self.settings = settings
        self.retry_budget = RetryBudget()
        self._clock = clock
        self._metrics = metrics
        self.left_streams = LeftStreams()
        self._queues = WaitQueues()
        self._waited = metrics.queue_seconds.labels("served")

    def apply(self, settings: EngineSettings) -> None:
        """Take new settings; waiting requests stay in the queue."""
        self.settings = settings

    @property
    def waiting(self) -> int:
        """How many requests wait for a backend with capacity."""
        return self._queues.length

    # ---- responses

    async def answer(self, request: DispatchRequest, engine_request: EngineRequest) -> EngineReply:
        """Return the reply of the first backend that answers.

        Raises:
            Unavailable: No backend can answer, or none had capacity in time.
            Exhausted: The queue is full, or every backend that was tried is.
            TimedOut: No backend answered in time.
            UpstreamFailed: All that were tried failed.
            ApplianceError: The client's own fault, as a backend reported it.
        """
        self.retry_budget.deposit()
        last: Failure | None = None
        meter = engine_request.meter
        while True:
            now_s = self._clock.monotonic_s()
            slot = self._choose(request, now_s)
            if slot is None:
                slot = await self._wait_for_slot(request, last, now_s)
                now_s = self._clock.monotonic_s()
            budget_s = max(0.001, request.deadline_s - now_s)
            if meter is not None:
                _begin_attempt(meter, slot, request, engine_request.receipt)
            try:
                reply = await slot.backend.send(engine_request, slot, budget_s=budget_s)
            except (AttemptFailed, ApplianceError) as failure:
                if meter is not None:
                    meter.end_attempt(slot.attempt.outcome, read_usage(engine_request.receipt, meter))
                self._allow_retry(request, slot.backend, failure)
                # Without its frames: they hold the request, in a cycle that only the collector would end.
                last = failure.with_traceback(None)
            else:
                if request.undecided is not None:
                    request.confirm_failures()
                return reply

    async def answer_billed(
        self, request: DispatchRequest, engine_request: EngineRequest, billing: Billing
    ) -> EngineReply:
        """Return the reply as `answer`, with every attempt metered and charged once, however it ends.

        Raises:
            PaymentRequired: The caller's credits do not allow it.
            ApplianceError: As `Billing.begin` and `answer`.
        """
        meter = engine_request.meter = await billing.begin(engine_request)
        try:
            reply = await self.answer(request, engine_request)
            if reply.events is not None:  # it is charged when the stream is closed
                is_read = meter.is_remote and self.settings.upstream_on_client_left == "drain"
                left = self.left_streams if is_read else None
                reply.events = MeteredStream(reply.events, meter, engine_request, left)
                return reply
            _end_whole(meter, engine_request, reply)
        except BaseException:
            meter.close()
            raise
        meter.close()
        return reply

    def _allow_retry(self, request: DispatchRequest, backend: Backend, failure: Failure) -> None:
        """Let another backend try, or raise the error for the caller.

        1. the client's own fault                          → raised
        2. the backend was pinned, or a second server said the same sentence → raised
        3. the prompt is too long for it                   → those with more context may try
        4. it did no work for the request, or has no capacity → the others may try, at no cost
        5. otherwise                                       → the others may try, while the retry budget lasts
        """
        request.tried.add(backend.name)
        if isinstance(failure, ApplianceError):
            if failure.kind not in RETRYABLE_KINDS:
                raise failure  # 1
            label, retry = failure.kind.value, Retry.BUDGET
        else:
            label, retry = failure.label, failure.retry
        if request.is_pinned or (isinstance(failure, AttemptFailed) and request.note_sentence(failure)):
            raise self._final_error(request, failure)  # 2
        if isinstance(failure, AttemptFailed) and failure.context is not None:  # 3
            request.context_over = max(request.context_over, failure.context[1], backend.context_tokens)
        elif retry is not Retry.FREE and not self.retry_budget.withdraw():  # 4, 5
            raise self._final_error(request, failure)
        if any(request.candidates()):
            self._metrics.retries.labels(label).inc()

    def _final_error(self, request: DispatchRequest, failure: Failure) -> ApplianceError:
        return all_failed(request, failure, self._retry_after_s(request))

    # ---- choice

    async def take_slot(self, request: DispatchRequest, *, may_wait: bool = True) -> Slot[Backend]:
        """Return a slot on a backend, after a wait in the queue if all candidates are full.

        Args:
            request: The request.
            may_wait: False = only a backend that is ready now will do.

        Raises:
            Unavailable, Exhausted, Invalid: As `answer`.
        """
        now_s = self._clock.monotonic_s()
        slot = self._choose(request, now_s)
        if slot is None and not may_wait:
            raise no_backend(request, now_s)
        return slot or await self._wait_for_slot(request, None, now_s)

    def _choose(self, request: DispatchRequest, now_s: float) -> Slot[Backend] | None:
        """Take a slot on one of the backends that are ready at this moment.

        1. one is pinned                          → that one, whatever its state
        2. the first stage with one that is ready → by the pool's strategy
        3. a later stage                          → the same, and the receipt says why it left the first pool
        4. none                                   → None
        """
        if request.is_pinned:
            return self._choose_pinned(request)  # 1
        for number, pool in enumerate(request.open_stages()):
            ready = [b for b in request.candidates_in(pool) if b.status(now_s) is BackendStatus.READY]
            if ready:
                backend, reason = self._pick(ready, pool, request)  # 2, 3
                return self._take(backend, reason, request, number)
        return None  # 4

    def _choose_pinned(self, request: DispatchRequest) -> Slot[Backend] | None:
        pin = request.options.pin
        for number, pool in enumerate(request.open_stages()):
            for backend in pool.serving(request.model):
                if backend.name == pin and pin not in request.tried:
                    return self._take(backend, "pinned", request, number)
        return None

    def _pick(self, ready: list[Backend], pool: Pool, request: DispatchRequest) -> tuple[Backend, str]:
        """Pick one of the ready backends of a pool; return it and why.

        1. balancing is off                 → the first
        2. there is only one                → that one
        3. the strategy uses the prompt     → by it; the choice is remembered for the prompt's prefixes
        4. otherwise                        → by the strategy; equally busy ones: the cheaper
        """
        if not self.settings.lb_enabled:
            return ready[0], "first"  # 1
        balancer = pool.balancer
        if balancer.strategy != "prefix_affinity":
            if len(ready) == 1:
                return ready[0], "only_one"  # 2
            member, reason = balancer.choose([backend.member for backend in ready])  # 4
        else:
            prefixes = request.hash_prefixes()  # 3
            member, reason = balancer.choose([backend.member for backend in ready], prefixes=prefixes)
            if prefixes:
                balancer.remember(member, prefixes)
        return next(backend for backend in ready if backend.member is member), reason

    def _take(self, backend: Backend, reason: str, request: DispatchRequest, number: int) -> Slot[Backend]:
        """Take a slot of stage `number`, and record the choice in the receipt."""
        receipt = request.receipt
        receipt.pool = request.stages[number].name
        receipt.reason = f"{request.reason}, {reason}" if reason != "only_one" else request.reason
        if number:
            self._note_overflow(request, reason)
        return backend.take(reason)

    def _note_overflow(self, request: DispatchRequest, reason: str) -> None:
        """Record in receipt and metrics why a request left its first pool."""
        receipt, first = request.receipt, request.stages[0]
        why = overflow_reason(first.serving(request.model), bool(request.tried), self._clock.monotonic_s())
        receipt.overflow = f"{first.name} failed" if why == "failed" else f"{first.name} is {why}"
        receipt.reason = f"overflow from {receipt.overflow}, {reason}"
        self._metrics.overflows.labels(first.name, receipt.pool, why).inc()

    # ---- queue

    async def _wait_for_slot(
        self, request: DispatchRequest, last: Failure | None, now_s: float
    ) -> Slot[Backend]:
        """Wait for a slot if a backend may have one soon.

        1. a candidate is full or starting → wait in the queue
        2. an attempt failed before        → that error
        3. otherwise                       → an error that says why

        Args:
            request: No backend is ready for it.
            last: The failure of its latest attempt; None = there was no attempt yet.
            now_s: When that was seen, monotonic.
        """
        statuses = {backend.status(now_s) for backend in request.candidates()}
        if BackendStatus.FULL in statuses or BackendStatus.STARTING in statuses:
            return await self._wait_in_queue(request, last, now_s)  # 1
        if last is not None:
            raise self._final_error(request, last)  # 2
        raise no_backend(request, now_s)  # 3

    async def _wait_in_queue(
        self, request: DispatchRequest, last: Failure | None, now_s: float
    ) -> Slot[Backend]:
        """Wait in the queue for a slot.

        Raises:
            Exhausted: The queue is full.
            Unavailable: No slot became free in time.
        """
        settings, queues = self.settings, self._queues
        if queues.length >= settings.queue_limit:
            self._metrics.queue_seconds.labels("refused").observe(0)
            if isinstance(last, ApplianceError):
                raise last
            raise queue_full(settings.queue_limit, self._retry_after_s(request))
        patience_s = min(settings.queue_timeout_s, request.deadline_s - now_s)
        waiter = queues.join(request, now_s=now_s, ageing_s=settings.queue_ageing_s)
        outcome = "left"
        try:
            await in_task()
            async with asyncio.timeout(max(0.0, patience_s)):
                slot = await waiter.slot
            outcome = "served"
            return slot
        except TimeoutError:
            outcome = "timed_out"
            if (late := waiter.served()) is not None:  # it got a slot just before the time-out
                late.release(Outcome.CANCELLED)
            if last is not None:
                raise self._final_error(request, last) from None
            raise queue_timeout(request, patience_s, self._retry_after_s(request)) from None
        except asyncio.CancelledError:
            if (late := waiter.served()) is not None:
                late.release(Outcome.CLIENT_LEFT)
            raise
        finally:
            queues.leave(waiter)
            waited_s = self._clock.monotonic_s() - now_s
            request.receipt.queue_ms += waited_s * 1000
            waited = self._waited if outcome == "served" else self._metrics.queue_seconds.labels(outcome)
            waited.observe(waited_s)

    def serve_queues(self) -> None:
        """Give slots to waiting requests; called when a backend may have capacity."""
        if self._queues.length:
            self._queues.serve(self._choose, self._clock.monotonic_s())

    def _retry_after_s(self, request: DispatchRequest) -> float:
        return estimate_retry_after_s(list(request.candidates()), self._queues.length)


def _begin_attempt(
    meter: RequestMeter, slot: Slot[Backend], request: DispatchRequest, receipt: Receipt
) -> None:
    """Meter an attempt that is sent now; the slot is given back where it cannot be paid for."""
    backend = slot.backend
    receipt.prompt_tokens = receipt.completion_tokens = None  # of an earlier attempt
    receipt.cached_tokens, receipt.tokens_from = 0, ""
    try:
        model = request.model or ""
        served = backend.find_model(model)
        upstream = served.upstream if served is not None else model
        meter.begin_attempt(backend.name, upstream, is_remote=backend.is_remote)
    except BaseException:
        slot.release(Outcome.CANCELLED)
        raise


def _end_whole(meter: RequestMeter, request: EngineRequest, reply: EngineReply) -> None:
    """Charge the attempt whose whole response has come; tokens are counted where the engine told none."""
    receipt = request.receipt
    if reply.status >= 300:
        meter.end_attempt(Outcome.REFUSED, read_usage(receipt, meter))
        return
    is_untold = receipt.completion_tokens is None and request.operation is not Operation.EMBEDDING
    if is_untold and reply.body is not None:
        meter.took_whole(count_text_bytes(reply.body))
    meter.end_attempt(Outcome.OK, read_usage(receipt, meter))
