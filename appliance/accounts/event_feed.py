"""Who waits for events in this process: sockets and polls, woken by the feed of changes.

What wakes them carries no event: each reads the database from the number that it has, so it misses none and
gets none twice, on whichever replica it is.
"""

import asyncio
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from appliance.accounts.changes import ChangeFeed
from appliance.storage.events import CHANGE_KIND, OPERATORS, EventLog


class EventFeed:
    """The events, and who waits for them here.

    Args:
        log: The events.
        changes: Says that there are new ones.

    Attributes:
        log: The events.
    """

    def __init__(self, log: EventLog, changes: ChangeFeed) -> None:
        self.log = log
        self._waiting: dict[str, set[asyncio.Event]] = {}
        changes.on(CHANGE_KIND, self._changed)

    @contextmanager
    def waiting(self, *user_ids: str | None) -> Iterator[asyncio.Event]:
        """Yield what is set whenever there may be new events of one of these receivers.

        Args:
            user_ids: The receivers; None = operators.
        """
        woken = asyncio.Event()
        names = {user_id or OPERATORS for user_id in user_ids}
        for name in names:
            self._waiting.setdefault(name, set()).add(woken)
        try:
            yield woken
        finally:
            for name in names:
                others = self._waiting[name]
                others.discard(woken)
                if not others:
                    del self._waiting[name]

    async def _changed(self, user_ids: Iterable[str]) -> None:
        for user_id in user_ids:
            for woken in self._waiting.get(user_id, ()):
                woken.set()
