"""A queue in which no flow starves: priority levels with ageing, and turns among the flows of a level.

A flow is what should have one share of the queue (a key, an address): a flow with a thousand waiters delays
the first of another by one turn. Pure: the caller provides the time.
"""

from collections import OrderedDict, deque
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")
LEVELS = 3  # 0 high, 1 normal, 2 low


class FairQueueFull(Exception):
    """The queue has reached its limit."""


@dataclass(slots=True, eq=False)
class Ticket(Generic[T]):
    """A position in the queue."""

    item: T
    flow: str
    priority: int
    since_s: float
    is_removed: bool = False


class FairQueue(Generic[T]):
    """The queue.

    Args:
        limit: Most waiters.
        ageing_s: So many seconds of waiting are worth one level of priority.
    """

    def __init__(self, limit: int, *, ageing_s: float = 10.0) -> None:
        self.limit = limit
        self.ageing_s = ageing_s
        self._levels: list[OrderedDict[str, deque[Ticket[T]]]] = [OrderedDict() for _ in range(LEVELS)]
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def push(self, item: T, *, flow: str, priority: int = 1, now_s: float) -> Ticket[T]:
        """Add a waiter.

        Args:
            item: What `pop` will return.
            flow: The flow that it belongs to.
            priority: 0 high, 1 normal, 2 low.
            now_s: The time, in the same clock as for `pop`.

        Returns:
            The ticket, for `remove` and `position`.

        Raises:
            FairQueueFull: `limit` are waiting.
        """
        if self._count >= self.limit:
            raise FairQueueFull
        ticket = Ticket(item, flow, priority, now_s)
        self._levels[priority].setdefault(flow, deque()).append(ticket)
        self._count += 1
        return ticket

    def remove(self, ticket: Ticket[T]) -> bool:
        """Take a waiter out of the queue; False if it was out already."""
        if ticket.is_removed:
            return False
        ticket.is_removed = True
        self._count -= 1
        flows = self._levels[ticket.priority]
        waiters = flows[ticket.flow]
        if waiters[0] is ticket:
            waiters.popleft()
        else:
            waiters.remove(ticket)
        if not waiters:
            del flows[ticket.flow]
        return True

    def peek(self, now_s: float) -> T:
        """Return the next item and leave it in the queue.

        Raises:
            IndexError: The queue is empty.
        """
        return self._next(now_s).item

    def pop(self, now_s: float) -> T:
        """Take the next item out of the queue, and end the turn of its flow.

        Raises:
            IndexError: The queue is empty.
        """
        ticket = self._next(now_s)
        flows = self._levels[ticket.priority]
        self.remove(ticket)
        if ticket.flow in flows:
            flows.move_to_end(ticket.flow)
        return ticket.item

    def position(self, ticket: Ticket[T], now_s: float) -> int:
        """Estimate how many are served before it: all of higher levels, and the turns of its own level."""
        before = sum(len(waiters) for flows in self._levels[: ticket.priority] for waiters in flows.values())
        flows = self._levels[ticket.priority]
        own = flows.get(ticket.flow)
        if own is None or ticket.is_removed:
            return 0
        turns = own.index(ticket)
        others = sum(min(len(waiters), turns + 1) for flow, waiters in flows.items() if flow != ticket.flow)
        return before + turns + others

    def _next(self, now_s: float) -> Ticket[T]:
        """Find the next ticket: the first of each level's next flow; the best level by age wins."""
        best: Ticket[T] | None = None
        best_score = 0.0
        for level, flows in enumerate(self._levels):
            if not flows:
                continue
            ticket = next(iter(flows.values()))[0]
            score = level - (now_s - ticket.since_s) / self.ageing_s
            if best is None or score < best_score:
                best, best_score = ticket, score
        if best is None:
            raise IndexError("the queue is empty")
        return best
