"""Events: what users and operators are told, numbered for each of them, kept for some days.

An event is written in the transaction of what it tells, so it is there exactly when that is. The numbers of
one receiver have no gaps and no doubles, and become visible in order: the row that counts them stays locked
until the transaction ends. A note among the changes wakes the replicas that have a receiver's connection.
"""

from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

from sqlalchemy import select

from appliance.base import jsons
from appliance.base.clock import Clock, format_rfc3339_ms
from appliance.storage.database import Database, Transaction
from appliance.storage.schema import events

TOPICS: Final = ("instances", "offers", "billing", "usage", "sessions", "system")
CHANGE_KIND: Final = "event"  # of the note among the changes; its id is the receiver
OPERATORS: Final = ""  # the receiver of events that belong to no user
KEEP_MS: Final = 7 * 86_400_000
KEEP_COUNT: Final = 1000  # of the newest, for each receiver
MAX_DATA_BYTES: Final = 16_384
PAGE: Final = 256
_COUNT: Final = (
    "INSERT INTO event_marks(user_id, last_seq) VALUES (:user_id, 1) "
    "ON CONFLICT (user_id) DO UPDATE SET last_seq = event_marks.last_seq + 1 RETURNING last_seq"
)
_INSERT: Final = (
    "INSERT INTO events(user_id, seq, topic, at, data) VALUES (:user_id, :seq, :topic, :at, :data)"
)
_BOUNDS: Final = (
    "SELECT m.last_seq, (SELECT MIN(e.seq) FROM events e WHERE e.user_id = m.user_id) AS first_seq "
    "FROM event_marks m WHERE m.user_id = :user_id"
)
_PRUNE_OLD: Final = "DELETE FROM events WHERE at < :before"
_PRUNE_MANY: Final = (
    "DELETE FROM events WHERE seq <= (SELECT m.last_seq FROM event_marks m "
    "WHERE m.user_id = events.user_id) - :keep"
)


class ChangeNotes(Protocol):
    """How replicas hear that something is new (accounts.changes.ChangeFeed)."""

    async def note(self, transaction: Transaction, kind: str, ids: Iterable[str]) -> None:
        """Note in a transaction that things of a kind are changed by it."""

    async def announce(self) -> None:
        """Wake this replica's reader and the others'."""


AppendEvent = Callable[[Transaction, str | None, str, Mapping[str, Any]], Awaitable[int]]


@dataclass(frozen=True, slots=True)
class StoredEvent:
    """An event.

    Attributes:
        seq: Its number among those of its receiver, from 1.
        topic: Of TOPICS.
        at_ms: Epoch milliseconds.
    """

    seq: int
    topic: str
    at_ms: int
    data: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Return `{seq, topic, at, data}`."""
        return {
            "seq": self.seq,
            "topic": self.topic,
            "at": format_rfc3339_ms(self.at_ms),
            "data": self.data,
        }


@dataclass(frozen=True, slots=True)
class EventSpan:
    """Which numbers a receiver's events have.

    Attributes:
        oldest: The first one that is kept; `newest` + 1 = none is kept.
        newest: The last one that was given; 0 = none was.
    """

    oldest: int
    newest: int


class EventLog:
    """The events of all receivers.

    Args:
        database: Where they are.
        changes: How replicas hear of them.
        clock: The time.
    """

    def __init__(self, database: Database, changes: ChangeNotes, *, clock: Clock) -> None:
        self._database = database
        self._changes = changes
        self._clock = clock

    # ---- write

    async def append(
        self, transaction: Transaction, user_id: str | None, topic: str, data: Mapping[str, Any]
    ) -> int:
        """Write an event in the transaction of what it tells; call `announce` after the commit.

        Write it last: other events of this receiver wait until the transaction ends.

        Args:
            transaction: Of what it tells.
            user_id: The receiver; None = operators.
            topic: Of TOPICS.
            data: What happened, as JSON; money in dollars, times as RFC 3339, nothing secret. Of more than
                16 KiB only the names of its fields are kept.

        Returns:
            Its number.

        Raises:
            ValueError: There is no such topic.
        """
        if topic not in TOPICS:
            raise ValueError(f"{topic[:40]!r} is no topic of events")
        receiver = user_id or OPERATORS
        counted = await transaction.execute(_COUNT, {"user_id": receiver})
        seq: int = counted[0].last_seq
        text = jsons.dumps(dict(data)).decode()
        if len(text.encode()) > MAX_DATA_BYTES:
            text = jsons.dumps({"is_cut": True, "fields": [str(name)[:64] for name in data][:64]}).decode()
        await transaction.execute(
            _INSERT,
            {
                "user_id": receiver,
                "seq": seq,
                "topic": topic,
                "at": round(self._clock.now_s() * 1000),
                "data": text,
            },
        )
        await self._changes.note(transaction, CHANGE_KIND, [receiver])
        return seq

    async def announce(self) -> None:
        """Wake the readers after the commit; without it they read within 2 s."""
        await self._changes.announce()

    # ---- read

    async def span(self, user_id: str | None) -> EventSpan:
        """Return which numbers a receiver's events have."""

        async def read(transaction: Transaction) -> EventSpan:
            rows = await transaction.execute(_BOUNDS, {"user_id": user_id or OPERATORS})
            if not rows:
                return EventSpan(1, 0)
            newest: int = rows[0].last_seq
            first: int | None = rows[0].first_seq
            return EventSpan(newest + 1 if first is None else first, newest)

        return await self._database.run(read, is_read_only=True)

    async def read(
        self, user_id: str | None, *, after: int, limit: int = PAGE, topics: Collection[str] | None = None
    ) -> list[StoredEvent]:
        """Return a receiver's events in order.

        Args:
            user_id: The receiver; None = operators.
            after: Only those with a higher number.
            limit: At most so many.
            topics: Only these; None = all.
        """
        query = (
            select(events.c.seq, events.c.topic, events.c.at, events.c.data)
            .where(events.c.user_id == (user_id or OPERATORS), events.c.seq > after)
            .order_by(events.c.seq)
            .limit(limit)
        )
        if topics is not None:
            query = query.where(events.c.topic.in_(sorted(topics)))

        async def read(transaction: Transaction) -> list[StoredEvent]:
            rows = await transaction.execute(query)
            return [StoredEvent(row.seq, row.topic, row.at, jsons.loads(row.data)) for row in rows]

        return await self._database.run(read, is_read_only=True)

    # ---- what nothing but the levels of credits needs

    async def change_level(self, transaction: Transaction, user_id: str, level: int) -> int | None:
        """Note a user's level of credits; return the one before, None = it is unchanged.

        Of several replicas that see a change one gets the answer that it is one.
        """
        await transaction.execute(
            "INSERT INTO event_marks(user_id, last_seq) VALUES (:user_id, 0) "
            "ON CONFLICT (user_id) DO NOTHING",
            {"user_id": user_id},
        )
        lock = "" if transaction.kind == "sqlite" else " FOR UPDATE"
        rows = await transaction.execute(
            f"SELECT credit_level FROM event_marks WHERE user_id = :user_id{lock}",  # noqa: S608 - constants
            {"user_id": user_id},
        )
        before: int = rows[0].credit_level
        if before == level:
            return None
        await transaction.execute(
            "UPDATE event_marks SET credit_level = :level WHERE user_id = :user_id",
            {"user_id": user_id, "level": level},
        )
        return before

    async def prune(self) -> None:
        """Delete events that are older than 7 days, and all but the newest 1000 of each receiver."""
        before_ms = round(self._clock.now_s() * 1000) - KEEP_MS

        async def work(transaction: Transaction) -> None:
            await transaction.execute(_PRUNE_OLD, {"before": before_ms})
            await transaction.execute(_PRUNE_MANY, {"keep": KEEP_COUNT})

        await self._database.run(work)
