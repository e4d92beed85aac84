"""How many replicas live: those that were seen in the database lately."""

from typing import Final

from sqlalchemy import func, select

from appliance.base.clock import Clock
from appliance.storage.database import Database, StoreUnavailable
from appliance.storage.schema import replicas

LIVES_S: Final = 45.0  # three times as long as a replica takes to say that it lives
READ_S: Final = 10.0


class LiveReplicas:
    """The number of replicas, read now and then.

    Attributes:
        count: This one included, at least 1; while the database is down, as it was.
    """

    def __init__(self, database: Database, *, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self.count = 1

    async def read(self) -> None:
        """Count them. While the database is down the number stays."""
        if self._database.kind == "sqlite":  # one process holds its file
            return
        since_ms = round((self._clock.now_s() - LIVES_S) * 1000)
        query = (
            select(func.count().label("replicas")).select_from(replicas).where(replicas.c.seen_at > since_ms)
        )
        try:
            async with self._database.transaction(is_read_only=True) as transaction:
                rows = await transaction.execute(query)
        except StoreUnavailable:
            return
        self.count = max(1, rows[0].replicas)
