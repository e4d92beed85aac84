"""Tells all replicas what was changed, and hears it from them.

A change of a user, key, session, price or plan writes a row into `changes` in its own transaction. The
announcement (NOTIFY, or a message of Redis) carries no data and may be lost: it only wakes the readers, and
they read every 2 s anyway. Sequence numbers can be committed out of order, so each reading begins where the
reader was 10 s before its last one.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from typing import Final, Protocol

from sqlalchemy import delete, func, insert, select, text

from appliance.base.clock import Clock
from appliance.base.logs import get_logger
from appliance.storage.database import Database, StoreUnavailable, Transaction
from appliance.storage.schema import changes

log = get_logger("accounts")
CHANNEL: Final = "appliance"
POLL_S: Final = 2.0
LOOK_BACK_S: Final = 10.0
START_BACK: Final = 1000  # rows that are read again at start: their numbers may be committed out of order
KEEP_S: Final = 86_400
PAGE: Final = 1000
Handler = Callable[[set[str]], Awaitable[None]]


class Bell(Protocol):
    """Wakes the other replicas by another way than the database: Redis."""

    async def ring(self) -> None:
        """Wake them; it may be lost, and does not raise."""


class ChangeFeed:
    """The rows of `changes`: written here, and read in order by every replica.

    Args:
        bell: Wakes other replicas beside NOTIFY; None = there is none.

    Attributes:
        behind_s: How long ago the last reading was complete, in monotonic seconds of the clock.
    """

    def __init__(self, database: Database, *, clock: Clock, bell: Bell | None = None) -> None:
        self._database = database
        self._clock = clock
        self._bell = bell
        self._handlers: dict[str, Handler] = {}
        self._wake = asyncio.Event()
        self._mark = 0  # all rows up to this number were read, at least 10 s ago
        self._seen: set[int] = set()  # rows after it that were read
        self._read_at: deque[tuple[float, int]] = deque()  # when which number was the highest one read
        self._on_read: Callable[[float], None] | None = None

    def on(self, kind: str, handler: Handler) -> None:
        """Call `handler` with the ids of changed things of a kind."""
        self._handlers[kind] = handler

    def on_read(self, callback: Callable[[float], None]) -> None:
        """Call `callback` with the time, in seconds since 1970, up to which every change was handled."""
        self._on_read = callback

    # ---- write

    async def note(self, transaction: Transaction, kind: str, ids: Iterable[str]) -> None:
        """Note in a transaction that things of a kind are changed by it; call `announce` after the commit."""
        at_ms = round(self._clock.now_s() * 1000)
        rows = [{"at": at_ms, "kind": kind, "id": one} for one in ids]
        if not rows:
            return
        await transaction.execute(insert(changes), rows)
        if self._database.kind == "postgres":
            await transaction.execute(text("SELECT pg_notify('appliance', '')"))

    async def announce(self) -> None:
        """Wake this replica's reader and the others'."""
        self._wake.set()
        if self._bell is not None:
            await self._bell.ring()

    def wake(self) -> None:
        """Read soon: there may be changes."""
        self._wake.set()

    # ---- read

    async def start(self) -> None:
        """Begin behind the rows that are there now. What depends on them is to be read after this.

        Raises:
            StoreUnavailable: The database is down.
        """
        async with self._database.transaction(is_read_only=True) as transaction:
            rows = await transaction.execute(select(func.max(changes.c.seq).label("seq")))
        self._mark = max(0, (rows[0].seq or 0) - START_BACK)
        self._seen.clear()
        self._read_at.clear()

    async def run(self) -> None:
        """Read for ever. Run it as a background task."""
        await self._database.listen(CHANNEL, lambda _: self._wake.set())
        while True:
            try:
                async with asyncio.timeout(POLL_S):
                    await self._wake.wait()
            except TimeoutError:
                pass
            self._wake.clear()
            try:
                await self.read()
            except StoreUnavailable:
                continue  # the database says so in the log
            except Exception:
                log.exception("changes_unread")

    async def read(self) -> None:
        """Read what is new, and call the handlers.

        Raises:
            StoreUnavailable: The database is down; nothing is skipped.
        """
        began_s = self._clock.now_s()
        found: dict[str, set[str]] = {}
        fresh: set[int] = set()
        after = self._mark
        while True:
            query = (
                select(changes.c.seq, changes.c.kind, changes.c.id)
                .where(changes.c.seq > after)
                .order_by(changes.c.seq)
                .limit(PAGE)
            )
            async with self._database.transaction(is_read_only=True) as transaction:
                rows = await transaction.execute(query)
            for row in rows:
                after = row.seq
                if row.seq not in self._seen:
                    fresh.add(row.seq)
                    found.setdefault(row.kind, set()).add(row.id)
            if len(rows) < PAGE:
                break
        for kind, ids in found.items():
            if (handler := self._handlers.get(kind)) is not None:
                await handler(ids)
        self._seen |= fresh  # only now: a handler that failed is called again
        self._move_mark(after)
        if self._on_read is not None:
            self._on_read(began_s)

    def _move_mark(self, highest: int) -> None:
        now_s = self._clock.monotonic_s()
        self._read_at.append((now_s, highest))
        while self._read_at and now_s - self._read_at[0][0] >= LOOK_BACK_S:
            self._mark = max(self._mark, self._read_at.popleft()[1])
        self._seen = {seq for seq in self._seen if seq > self._mark}

    async def prune(self) -> None:
        """Delete rows that every replica has read long ago."""
        before_ms = round((self._clock.now_s() - KEEP_S) * 1000)

        async def work(transaction: Transaction) -> None:
            await transaction.execute(delete(changes).where(changes.c.at < before_ms))

        await self._database.run(work)
