"""What an API key may spend in a calendar month: its cap, less what it has spent and what its requests hold.

What other replicas charge is read every READ_EVERY_S, so that several of them can go beyond a cap by what
they spend in that time. Within one replica a cap is never exceeded.
"""

from collections.abc import Callable
from dataclasses import dataclass

from appliance.accounts.usage import month_of
from appliance.base.clock import Clock
from appliance.storage.database import Database, Rows, Transaction

READ_EVERY_S = 5.0


@dataclass(slots=True)
class KeyCap:
    """The cap of one key, in one process.

    Attributes:
        cap_musd: Of a month.
        month: The month of what follows, UTC: `2026-11`.
        settled_musd: Spent by all replicas, as it was read.
        charged_musd: Charged here, and perhaps not read yet.
        held_musd: Held by requests that run here.
        read_at_s: When it was read, monotonic seconds.
    """

    cap_musd: int
    month: str = ""
    settled_musd: int = 0
    charged_musd: int = 0
    held_musd: int = 0
    read_at_s: float = 0.0

    @property
    def left_musd(self) -> int:
        """What may still be held."""
        return self.cap_musd - self.settled_musd - self.charged_musd - self.held_musd

    def hold(self, musd: int) -> bool:
        """Take `musd` for a request; False = the cap does not allow it."""
        if musd > self.left_musd:
            return False
        self.held_musd += musd
        return True

    def release(self, musd: int) -> None:
        """Give back what a request held and did not use."""
        self.held_musd -= musd

    def charge(self, held_musd: int, charged_musd: int) -> None:
        """End a hold, of which so much was spent."""
        self.held_musd -= held_musd
        self.charged_musd += charged_musd


class KeyCaps:
    """The caps of all keys that have one, for one process.

    Args:
        database: Where it is kept what they have spent.
        clock: The time.
        unsettled_musd: Key → what was charged here and is not in the database yet.
    """

    def __init__(self, database: Database, clock: Clock, unsettled_musd: Callable[[str], int]) -> None:
        self._database = database
        self._clock = clock
        self._unsettled_musd = unsettled_musd
        self._caps: dict[str, KeyCap] = {}

    def find(self, key_id: str, cap_musd: int) -> KeyCap | None:
        """Return the cap of a key; None = `read` it first: it is not known, or was not read lately."""
        cap = self._caps.get(key_id)
        now_s = self._clock.monotonic_s()
        if cap is None or now_s - cap.read_at_s >= READ_EVERY_S or cap.month != self._month():
            return None
        cap.cap_musd = cap_musd
        return cap

    async def read(self, key_id: str, cap_musd: int) -> KeyCap:
        """Return the cap of a key, with what all replicas have spent by now.

        Raises:
            StoreUnavailable: The database is down, and nothing is known of the key in this month.
        """
        month = self._month()

        async def spent(transaction: Transaction) -> Rows:
            return await transaction.execute(
                "SELECT spent_musd FROM key_spend WHERE key_id = :key AND month = :month",
                {"key": key_id, "month": month},
            )

        known = self._caps.get(key_id)
        if known is not None and known.month == month and not self._database.is_up:
            known.read_at_s = self._clock.monotonic_s()  # what is charged here is known all the same
            return known
        charged_before = known.charged_musd if known is not None else 0
        unsettled = self._unsettled_musd(key_id)
        rows = await self._database.run(spent, is_read_only=True)
        cap = self._caps.setdefault(key_id, KeyCap(cap_musd))
        # What was charged while it was read is counted beside what was not settled before.
        while_read = cap.charged_musd - charged_before if cap is known else cap.charged_musd
        cap.charged_musd = unsettled + while_read
        cap.settled_musd = rows[0].spent_musd if rows else 0
        cap.cap_musd, cap.month, cap.read_at_s = cap_musd, month, self._clock.monotonic_s()
        return cap

    def remove_idle(self) -> None:
        """Forget the keys that no request uses and that were not read for long."""
        before_s = self._clock.monotonic_s() - 60 * READ_EVERY_S
        for key_id, cap in list(self._caps.items()):
            if not cap.held_musd and cap.read_at_s < before_s:
                del self._caps[key_id]

    def _month(self) -> str:
        return month_of(int(self._clock.now_s() * 1000))
