"""A line in which nobody starves: levels of priority with ageing, and within a level turn by turn among flows. Pure: the caller
brings the time.

A flow is whoever should have one share (a key, an address): one with a thousand waiters delays another's first by one turn.
"""

from collections import OrderedDict, deque
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")
LEVELS = 3  # 0 high, 1 normal, 2 low


class FairQueueFull(Exception):
    """The line has reached its limit."""


@dataclass(slots=True, eq=False)
class Ticket(Generic[T]):
    """A place in line."""

    item: T
    flow: str
    priority: int
    since_s: float
    is_removed: bool = False


class FairQueue(Generic[T]):
    """Takes at most `limit` waiters; `ageing_s` seconds of waiting are worth one level of priority."""

    def __init__(self, limit: int, *, ageing_s: float = 10.0) -> None:
        self.limit = limit
        self.ageing_s = ageing_s
        self._levels: list[OrderedDict[str, deque[Ticket[T]]]] = [OrderedDict() for _ in range(LEVELS)]
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def push(self, item: T, *, flow: str, priority: int = 1, now_s: float) -> Ticket[T]:
        """Stand in line.

        Raises  Full
        """
        if self._count >= self.limit:
            raise FairQueueFull
        ticket = Ticket(item, flow, priority, now_s)
        self._levels[priority].setdefault(flow, deque()).append(ticket)
        self._count += 1
        return ticket

    def remove(self, ticket: Ticket[T]) -> bool:
        """Leave the line; gives False when it was left already."""
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
        """Give the next one, who stays in line.

        Raises  IndexError: nobody is there
        """
        return self._next(now_s).item

    def pop(self, now_s: float) -> T:
        """Give the next one, who leaves the line; then its flow's turn is over.

        Raises  IndexError: nobody is there
        """
        ticket = self._next(now_s)
        flows = self._levels[ticket.priority]
        self.remove(ticket)
        if ticket.flow in flows:
            flows.move_to_end(ticket.flow)
        return ticket.item

    def position(self, ticket: Ticket[T], now_s: float) -> int:
        """Give about how many go before: those of better levels, and the turns of its own."""
        before = sum(len(waiters) for flows in self._levels[: ticket.priority] for waiters in flows.values())
        flows = self._levels[ticket.priority]
        own = flows.get(ticket.flow)
        if own is None or ticket.is_removed:
            return 0
        turns = own.index(ticket)
        return (
            before
            + turns
            + sum(min(len(waiters), turns + 1) for flow, waiters in flows.items() if flow != ticket.flow)
        )

    def _next(self, now_s: float) -> Ticket[T]:
        """The flow whose turn it is in each level puts forward its first; the best level by age wins, then the longest wait."""
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
            raise IndexError("nobody is in line")
        return best
