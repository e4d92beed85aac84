"""Reads one receiver's events from a number on, in order, each once; says which ones are no longer kept.

Nothing is queued for a client: what it has not taken stays in the database. A client that lags behind by
more than is kept there is told of the gap, and gets the present state instead.
"""

from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Any, Protocol

Snapshot = Callable[[str], Awaitable[Any]]  # a user's id to the present state of a topic
PAGE = 256


class Event(Protocol):
    """One event (storage.events.StoredEvent)."""

    @property
    def seq(self) -> int:
        """Its number."""

    def to_json(self) -> dict[str, Any]:
        """Return `{seq, topic, at, data}`."""


class Span(Protocol):
    """Which numbers are kept (storage.events.EventSpan)."""

    @property
    def oldest(self) -> int:
        """The first one."""

    @property
    def newest(self) -> int:
        """The last one that was given."""


class Log(Protocol):
    """The events (storage.events.EventLog)."""

    async def span(self, user_id: str | None) -> Span:
        """Return which numbers a receiver's events have."""

    async def read(
        self, user_id: str | None, *, after: int, limit: int = PAGE, topics: Collection[str] | None = None
    ) -> list[Any]:
        """Return a receiver's events in order."""


class EventCursor:
    """How far one client has read the events of one receiver.

    Args:
        log: The events.
        user_id: The receiver; None = operators.
        topics: Which ones are read.
        after: The number that the client has.
        snapshots: The present state of topics, for a client that has missed events.

    Attributes:
        after: The last number that was read.
    """

    def __init__(
        self,
        log: Log,
        user_id: str | None,
        topics: Collection[str],
        after: int,
        *,
        snapshots: Mapping[str, Snapshot] | None = None,
    ) -> None:
        self._log = log
        self.user_id = user_id
        self.topics = frozenset(topics)
        self.after = after
        self._snapshots = snapshots or {}
        self._may_have_gap = True  # at the start, and whenever a page was full

    async def messages(self) -> list[dict[str, Any]]:
        """Return the next messages; [] = there is nothing new.

        1. events that the client has not seen are no longer kept   → a gap, and the state of each topic
        2. the client has a number that was never given             → likewise: it is of another database
        3. otherwise                                                → events, up to a page

        Raises:
            StoreUnavailable: The database is down; nothing is skipped.
        """
        if self._may_have_gap:
            span = await self._log.span(self.user_id)
            self._may_have_gap = False
            if self.after > span.newest:  # 2
                return await self._gap(span.newest + 1, self.after, span.newest)
            if self.after + 1 < span.oldest:  # 1
                return await self._gap(self.after + 1, span.oldest - 1, span.oldest - 1)
        if not self.topics:
            return []
        found = await self._log.read(self.user_id, after=self.after, limit=PAGE, topics=self.topics)  # 3
        if found:
            self.after = found[-1].seq
            self._may_have_gap = len(found) == PAGE
        return [{"type": "event", **event.to_json()} for event in found]

    async def _gap(self, first: int, last: int, after: int) -> list[dict[str, Any]]:
        messages: list[dict[str, Any]] = [{"type": "gap", "from": first, "to": last}]
        for topic in sorted(self.topics):
            make = self._snapshots.get(topic)
            if make is not None and self.user_id is not None:
                messages.append({"type": "snapshot", "topic": topic, "data": await make(self.user_id)})
        self.after = after
        return messages
