"""Requests that wait for a backend with capacity; those that the same backends can answer share one queue.

Within a queue no request starves (base/fair_queue.py); among queues, the one whose head has waited longest is
served first.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from appliance.base.fair_queue import FairQueue, Ticket
from appliance.engines.backends.contract import Backend
from appliance.engines.dispatch_request import DispatchRequest
from appliance.engines.slots import Slot

UNLIMITED = 1_000_000  # the dispatcher enforces QUEUE_LIMIT, over all queues together


@dataclass(slots=True, eq=False)
class _Queue:
    key: tuple[object, ...]
    waiters: "FairQueue[QueuedRequest]"


@dataclass(slots=True, eq=False)
class QueuedRequest:
    """One request that waits; `slot` is set when it is served."""

    request: DispatchRequest
    since_s: float  # monotonic
    slot: "asyncio.Future[Slot[Backend]]"
    queue: _Queue
    ticket: "Ticket[QueuedRequest]" = field(init=False)

    def served(self) -> Slot[Backend] | None:
        """Return the slot that it got; None = it still waits."""
        if self.slot.done() and not self.slot.cancelled():
            return self.slot.result()
        return None


class WaitQueues:
    """All queues of a dispatcher."""

    def __init__(self) -> None:
        self._queues: dict[tuple[object, ...], _Queue] = {}
        self.length = 0  # waiting requests, in all queues

    def join(self, request: DispatchRequest, *, now_s: float, ageing_s: float) -> QueuedRequest:
        """Put a request into its queue; `leave` must be called in any case.

        Args:
            request: Its options hold its flow and its priority.
            now_s: Monotonic seconds.
            ageing_s: Seconds of waiting that raise the priority by one level.
        """
        key = _key(request)
        queue = self._queues.get(key)
        if queue is None:
            queue = self._queues[key] = _Queue(key, FairQueue(UNLIMITED, ageing_s=ageing_s))
        waiter = QueuedRequest(request, now_s, asyncio.get_running_loop().create_future(), queue)
        options = request.options
        waiter.ticket = queue.waiters.push(waiter, flow=options.flow, priority=options.priority, now_s=now_s)
        self.length += 1
        return waiter

    def leave(self, waiter: QueuedRequest) -> None:
        """Remove a request from its queue, served or not."""
        queue = waiter.queue
        self.length -= 1
        queue.waiters.remove(waiter.ticket)
        if not len(queue.waiters) and self._queues.get(queue.key) is queue:
            del self._queues[queue.key]

    def serve(self, choose: Callable[[DispatchRequest, float], Slot[Backend] | None], now_s: float) -> None:
        """Give slots to the next requests, as long as `choose` finds any.

        Args:
            choose: Takes a slot for a request at `now_s`; None = no backend has capacity for it.
            now_s: Monotonic seconds.
        """
        queues = [queue.waiters for queue in self._queues.values() if len(queue.waiters)]
        queues.sort(key=lambda waiters: waiters.peek(now_s).since_s)
        for waiters in queues:
            while len(waiters):
                waiter = waiters.peek(now_s)
                if not waiter.slot.done():  # else it was cancelled or timed out, and has not run since
                    slot = choose(waiter.request, now_s)
                    if slot is None:
                        break
                    waiter.slot.set_result(slot)
                waiters.pop(now_s)


def _key(request: DispatchRequest) -> tuple[object, ...]:
    """Return what two requests of one queue share: pools, model, limits and history."""
    options = request.options
    return (
        tuple(id(pool) for pool in request.stages),
        request.model,
        frozenset(request.tried),
        request.context_over,
        options.context_tokens,
        options.is_local_only,
        options.pin,
    )
