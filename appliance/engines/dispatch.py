"""Who answers a request, step by step: choose a backend that has room, wait in line when none has, try another when it fails.

A route is a list of stages, tried in order: a pool, then the pool that it overflows into, and so on. The cases of a choice are
numbered in `_choose`, those of a failure in `_after`. Nothing here reads a socket, and no request waits for a look at health.
"""

import asyncio
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from appliance.base.balancing import Balancer, hash_blocks
from appliance.base.clock import Clock
from appliance.base.errors import (
    ApplianceError,
    Exhausted,
    Invalid,
    Kind,
    TimedOut,
    Unavailable,
    UpstreamFailed,
)
from appliance.base.fair_queue import FairQueue, FairQueueFull, Ticket
from appliance.base.metrics.registry import Metrics
from appliance.base.retry_budget import RetryBudget
from appliance.engines.backends.contract import Backend
from appliance.engines.outcome import Outcome, Retry
from appliance.engines.receipts import Receipt, attempt_rows
from appliance.engines.settings import EngineSettings
from appliance.engines.slots import Slot
from appliance.engines.types import BackendStatus, EngineReply, EngineRequest, RequestOptions
from appliance.engines.upstream.exchange import AttemptFailed
from appliance.engines.upstream.refusal import context_error

ELSEWHERE = {
    Kind.UPSTREAM,
    Kind.UNAVAILABLE,
    Kind.TIMEOUT,
    Kind.EXHAUSTED,
}  # a hosted API's own verdicts that let another stage try
OUT_OF_TIME = {Outcome.FIRST_BYTE, Outcome.TOTAL, Outcome.IDLE}
LONGEST_RETRY_AFTER_S = 30.0


class Pool:
    """Backends that stand in for each other, and how one of them is chosen."""

    def __init__(self, name: str, *, strategy: str, overflow: str = "") -> None:
        self.name = name
        self.overflow = overflow
        self.backends: list[Backend] = []
        self.balancer = Balancer(strategy)
        self._by_model: dict[str, list[Backend]] = {}

    def refresh(self) -> None:
        """The backends, or their models, changed."""
        self._by_model.clear()

    def serving(self, model: str | None) -> list[Backend]:
        """Give the backends that serve `model` (None = all)."""
        if model is None:
            return self.backends
        found = self._by_model.get(model)
        if found is None:
            found = self._by_model[model] = [
                backend for backend in self.backends if backend.find_model(model) is not None
            ]
            if len(self._by_model) > 10_000:  # names come from clients where any name is served
                self._by_model = {model: found}
        return found


@dataclass(slots=True)
class DispatchRequest:
    """What the dispatcher is to place: a route, and what may not be forgotten on the way.

    stages    the pools in order; model: by the name that backends know, None = any backend will do
    reason    why this route, for the receipt (model, alias, default, pinned …)
    tried     backends that had this request already; context_over: only backends with more context than that (0 = any)
    """

    stages: list[Pool]
    model: str | None
    reason: str
    options: RequestOptions
    receipt: Receipt
    deadline_s: float
    prefixes: Callable[[], list[int]] = list
    tried: set[str] = field(default_factory=set)
    context_over: int = 0
    is_pinned: bool = False


@dataclass(slots=True)
class _Waiter:
    asking: DispatchRequest
    slot: "asyncio.Future[Slot]"
    since_s: float


@dataclass(slots=True)
class _Line:
    """Requests that can be helped by the same backends."""

    stages: list[Pool]
    model: str | None
    queue: FairQueue[_Waiter]


class Dispatcher:
    """Places requests. Synchronous where it decides; it awaits only a backend's answer, or a turn in line."""

    def __init__(self, settings: EngineSettings, *, clock: Clock, metrics: Metrics) -> None:
        self._clock = clock
        self._metrics = metrics
        self._lines: dict[tuple[object, ...], _Line] = {}
        self.waiting = 0
        self.retry_budget = RetryBudget()
        self._waited = metrics.queue_seconds.labels("served")
        self.apply(settings)

    def apply(self, settings: EngineSettings) -> None:
        """Take new settings; whoever waits keeps the place in line."""
        self.settings = settings

    # ---- answering

    async def answer(self, asking: DispatchRequest, request: EngineRequest) -> EngineReply:
        """Give the reply of the first backend that answers.

        Raises  Unavailable: nobody can · Exhausted: the line is full · TimedOut · UpstreamFailed: all that were tried failed ·
                what a backend says of the caller's own fault
        """
        self.retry_budget.deposit()
        last: Exception | None = None
        while True:
            slot = self._choose(asking) or await self._place_later(asking, last)
            backend: Backend = slot.backend  # type: ignore[assignment]
            try:
                return await backend.send(
                    request, slot, budget_s=max(0.001, asking.deadline_s - self._clock.monotonic_s())
                )
            except (AttemptFailed, ApplianceError) as failure:
                self._after(asking, backend, failure)
                last = failure

    def _after(self, asking: DispatchRequest, backend: Backend, failure: Exception) -> None:
        """Decide whether another backend may try; raise what the caller is told if not.

        1. the caller's own fault, or nobody else's        → told
        2. the backend was pinned                          → told
        3. the prompt is too long for it                   → those with more context may try
        4. nothing of it was sent, or it has no room       → the others may try, at no cost
        5. otherwise                                       → the others may try, while the retry budget lasts
        """
        asking.tried.add(backend.name)
        if isinstance(failure, ApplianceError) and failure.kind not in ELSEWHERE:  # 1
            raise failure
        if asking.is_pinned:  # 2
            raise self._told(asking, failure)
        reason = (
            failure.label
            if isinstance(failure, AttemptFailed)
            else failure.kind.value
            if isinstance(failure, ApplianceError)
            else ""
        )
        if isinstance(failure, AttemptFailed) and failure.context is not None:  # 3
            asking.context_over = max(asking.context_over, failure.context[1], backend.context_tokens)
        elif isinstance(failure, AttemptFailed) and (
            not failure.was_sent or failure.outcome.retry is Retry.FREE
        ):  # 4
            pass
        elif not self.retry_budget.withdraw():  # 5
            raise self._told(asking, failure)
        if self._candidates(asking):
            self._metrics.retries.labels(reason).inc()

    # ---- placing

    async def take_slot(self, asking: DispatchRequest) -> Slot:
        """Give a place on a backend; wait in line while all that could answer are full."""
        return self._choose(asking) or await self._place_later(asking, None)

    async def _place_later(self, asking: DispatchRequest, last: Exception | None) -> Slot:
        """Wait in line where there is reason to hope.

        Takes   last: the failure that brought the request back here
        """
        standings = [backend.status(self._clock.monotonic_s()) for backend in self._candidates(asking)]
        if BackendStatus.FULL in standings or BackendStatus.STARTING in standings:
            return await self._wait(asking, last)
        if last is not None:
            raise self._told(asking, last)
        raise self._nobody(asking, standings)

    def _candidates(self, asking: DispatchRequest) -> list[Backend]:
        """All backends that could answer if they had room: not tried yet, with context enough, and where the request may go."""
        options, tried, over = (
            asking.options,
            asking.tried,
            max(asking.context_over, asking.options.context_tokens - 1),
        )
        return [
            backend
            for number, pool in enumerate(asking.stages)
            if number == 0 or not options.is_local_only
            for backend in pool.serving(asking.model)
            if backend.name not in tried
            and not (options.is_local_only and backend.is_remote)
            and (not over or not backend.context_tokens or backend.context_tokens > over)
        ]

    def _choose(self, asking: DispatchRequest) -> Slot | None:
        """Choose among the backends that have room at this moment.

        1. the first stage with one that is ready → by the pool's strategy; equally busy ones: the cheaper
        2. a later stage                          → the same, and the receipt says why the request left
        3. none                                   → None
        """
        now_s = self._clock.monotonic_s()
        options, tried, over = (
            asking.options,
            asking.tried,
            max(asking.context_over, asking.options.context_tokens - 1),
        )
        for number, pool in enumerate(asking.stages):
            if number and options.is_local_only:
                break
            ready: list[Backend] = []
            for backend in pool.serving(asking.model):
                if asking.is_pinned:
                    if backend.name == options.pin and backend.name not in tried:
                        return self._taken(backend, "pinned", asking, pool, number)
                    continue
                if tried and backend.name in tried:
                    continue
                if over and backend.context_tokens and backend.context_tokens <= over:
                    continue
                if backend.is_remote and options.is_local_only:
                    continue
                if backend.status(now_s) is BackendStatus.READY:
                    ready.append(backend)
            if not ready:
                continue
            if not self.settings.lb_enabled:
                return self._taken(ready[0], "first", asking, pool, number)
            balancer = pool.balancer
            if len(ready) == 1 and balancer.strategy != "prefix_affinity":
                return self._taken(ready[0], "only_one", asking, pool, number)
            prefixes = asking.prefixes() if balancer.strategy == "prefix_affinity" else ()
            member, reason = balancer.choose([backend.member for backend in ready], prefixes=prefixes)
            chosen = next(backend for backend in ready if backend.member is member)
            if prefixes:
                balancer.remember(member, prefixes)
            return self._taken(chosen, reason, asking, pool, number)  # 1, 2
        return None  # 3

    def _taken(
        self,
        backend: Backend,
        reason: str,
        asking: DispatchRequest,
        pool: Pool,
        number: int,
    ) -> Slot:
        receipt = asking.receipt
        receipt.pool = pool.name
        receipt.reason = f"{asking.reason}, {reason}" if reason != "only_one" else asking.reason
        if number:
            first = asking.stages[0]
            now_s = self._clock.monotonic_s()
            standings = {b.status(now_s) for b in first.serving(asking.model)}
            why = "full" if BackendStatus.FULL in standings else "failed" if asking.tried else "down"
            receipt.overflow = f"{first.name} is {why}" if why != "failed" else f"{first.name} failed"
            receipt.reason = f"overflow from {receipt.overflow}, {reason}"
            self._metrics.overflows.labels(first.name, pool.name, why).inc()
        return backend.take(reason)

    # ---- the line

    async def _wait(self, asking: DispatchRequest, last: Exception | None) -> Slot:
        """Wait for a turn.

        Raises  Exhausted: the line is full · Unavailable: no turn within the time limit
        """
        settings, now_s = self.settings, self._clock.monotonic_s()
        if self.waiting >= settings.queue_limit:
            self._metrics.queue_seconds.labels("refused").observe(0)
            raise (
                last
                if isinstance(last, ApplianceError)
                else Exhausted(
                    "Every backend is full, and the line before them is, too."
                    if settings.queue_limit
                    else "Every backend is full.",
                    code="queue_full",
                    retry_after_s=self._retry_after_s(asking),
                )
            )
        patience_s = min(settings.queue_timeout_s, asking.deadline_s - now_s)
        line = self._line(asking)
        waiter = _Waiter(asking, asyncio.get_running_loop().create_future(), now_s)
        options = asking.options
        try:
            ticket: Ticket[_Waiter] = line.queue.push(
                waiter, flow=options.flow, priority=options.priority, now_s=now_s
            )
        except FairQueueFull:
            raise Exhausted(
                "The line before the backends is full.",
                code="queue_full",
                retry_after_s=self._retry_after_s(asking),
            ) from None
        self.waiting += 1
        outcome = "left"
        try:
            async with asyncio.timeout(max(0.0, patience_s)):
                slot = await waiter.slot
            outcome = "served"
            return slot
        except TimeoutError:
            outcome = "timed_out"
            if waiter.slot.done() and not waiter.slot.cancelled():  # the turn came in the very moment
                waiter.slot.result().release(Outcome.CANCELLED)
            raise self._too_long(asking, patience_s, last) from None
        except asyncio.CancelledError:
            if waiter.slot.done() and not waiter.slot.cancelled():
                waiter.slot.result().release(Outcome.CLIENT_LEFT)
            raise
        finally:
            self.waiting -= 1
            line.queue.remove(ticket)
            self._drop_empty(line)
            waited_s = self._clock.monotonic_s() - now_s
            asking.receipt.queue_ms += waited_s * 1000
            (self._waited if outcome == "served" else self._metrics.queue_seconds.labels(outcome)).observe(
                waited_s
            )

    def _line(self, asking: DispatchRequest) -> _Line:
        """Requests stand in one line when the same backends can help them: same pools, model, limits and history."""
        options = asking.options
        key = (
            tuple(id(pool) for pool in asking.stages),
            asking.model,
            frozenset(asking.tried),
            asking.context_over,
            options.context_tokens,
            options.is_local_only,
            options.pin,
        )
        line = self._lines.get(key)
        if line is None:
            line = self._lines[key] = _Line(
                asking.stages, asking.model, FairQueue(1_000_000, ageing_s=self.settings.queue_ageing_s)
            )
        return line

    def _drop_empty(self, line: _Line) -> None:
        if not len(line.queue):
            for key, value in list(self._lines.items()):
                if value is line:
                    del self._lines[key]

    def serve_queues(self) -> None:
        """Give slots to queued requests, as far as there is capacity. Of several queues, first the one whose head has waited longest."""
        if not self._lines:
            return
        now_s = self._clock.monotonic_s()
        lines = [line for line in self._lines.values() if len(line.queue)]
        lines.sort(key=lambda line: line.queue.peek(now_s).since_s)
        for line in lines:
            while len(line.queue):
                waiter = line.queue.peek(now_s)
                if waiter.slot.done():  # it left, or timed out, and has not yet taken itself out
                    line.queue.pop(now_s)
                    continue
                slot = self._choose(waiter.asking)
                if slot is None:
                    break
                line.queue.pop(now_s)
                waiter.slot.set_result(slot)

    # ---- what the caller is told

    def _retry_after_s(self, asking: DispatchRequest) -> float:
        """Guess when there will be room: the requests before this one, by the time that answers take."""
        rows = self._candidates(asking)
        times = [b.member.mean_s for b in rows if b.member.mean_s]
        mean_s = sum(times) / len(times) if times else 1.0
        at_a_time = max(1, sum(b.member.active for b in rows))
        return min(LONGEST_RETRY_AFTER_S, max(1.0, mean_s * (self.waiting + 1) / at_a_time))

    def _too_long(self, asking: DispatchRequest, waited_s: float, last: Exception | None) -> ApplianceError:
        if last is not None:
            return self._told(asking, last)
        return Unavailable(
            f"Every backend was full for {waited_s:.0f} seconds (QUEUE_TIMEOUT_S).",
            code="queue_timeout",
            retry_after_s=self._retry_after_s(asking),
            details={"attempts": attempt_rows(asking.receipt.attempts)},
        )

    def _nobody(self, asking: DispatchRequest, standings: Collection[BackendStatus]) -> ApplianceError:
        """Say why nobody can answer at all."""
        everyone = [b for pool in asking.stages for b in pool.serving(asking.model)]
        options = asking.options
        if options.context_tokens and everyone and not standings:
            largest = max(b.context_tokens for b in everyone)
            if largest and largest < options.context_tokens:
                return Invalid(
                    f"The request wants a context of {options.context_tokens} tokens (num_ctx); the largest here is {largest} tokens for the "
                    f"model {asking.receipt.public_model!r}. Ask for less, or leave it out.",
                    code="context_length_exceeded",
                    param="num_ctx",
                    details={"prompt_tokens": options.context_tokens, "context_tokens": largest},
                )
        if options.is_local_only and any(b.is_remote for b in everyone):
            return Unavailable(
                "No backend of this machine can answer, and the request may not leave it (x-appliance-stay-local).",
                code="stay_local",
                retry_after_s=5,
            )
        states = {b.name: b.status(self._clock.monotonic_s()).value for b in everyone}
        said = ", ".join(f"{name} is {state}" for name, state in list(states.items())[:8])
        return Unavailable(
            f"No backend available: {said}." if said else "No backend available.",
            code="no_backend",
            retry_after_s=2,
            details={"backends": states},
        )

    def _told(self, asking: DispatchRequest, failure: Exception) -> ApplianceError:
        """Give the error for a caller whose request failed with every backend that was tried."""
        attempts = attempt_rows(asking.receipt.attempts)
        if isinstance(failure, ApplianceError):
            return failure
        assert isinstance(failure, AttemptFailed)
        if failure.context is not None:
            return context_error(
                failure.context[0],
                max(failure.context[1], asking.context_over),
                model=asking.receipt.public_model,
            )
        if failure.error is not None:
            return failure.error
        if failure.outcome.retry is Retry.FREE:
            return Exhausted(
                "Every backend that could be asked is full.",
                code="backends_full",
                retry_after_s=failure.retry_after_s or self._retry_after_s(asking),
                details={"attempts": attempts},
            )
        tried = f"{len(attempts)} tried, the last: {failure.label}"
        if failure.outcome in OUT_OF_TIME:
            return TimedOut(f"No backend answered in time ({tried}).", details={"attempts": attempts})
        if failure.outcome is Outcome.CONNECT:
            return Unavailable(
                f"No backend available: none could be reached ({tried}).",
                code="no_backend",
                retry_after_s=2,
                details={"attempts": attempts},
            )
        return UpstreamFailed(
            f"No backend could answer ({tried}).", code="upstream_error", details={"attempts": attempts}
        )


def hash_prefixes(request: EngineRequest) -> list[int]:
    """Give the hashes of a request's beginning: what a server that had the same beginning before has in its cache."""
    from appliance.base import jsons

    body = request.body
    key = body.get("prompt_cache_key")
    text = jsons.dumps(
        body.get("messages") if "messages" in body else body.get("prompt") or body.get("input")
    )
    return ([hash(key)] if isinstance(key, str) else []) + hash_blocks(text)
