"""What an appliance that rents GPUs shows of them: in /healthz, /health and the metrics."""

from collections import Counter
from typing import Any, Final

from appliance.base.clock import Clock
from appliance.base.errors import ApplianceError
from appliance.base.metrics.market import MarketFigures
from appliance.market.rental_types import MarketAlarm, MarketState
from appliance.market.service import RentalService
from appliance.storage.database import Database, Transaction

MAX_COUNTED: Final = 1000
MAX_SHOWN: Final = 3
SUMS: Final = (
    "SELECT COALESCE(SUM(charged_musd), 0) AS charged, COALESCE(SUM(supply_musd), 0) AS supply FROM rentals"
)


class MarketStatus:
    """Views of renting. They are read from the database now and then, not when a page is asked for.

    Args:
        service: All rentals.
        database: Where they are.
        clock: The time.
    """

    def __init__(self, service: RentalService, database: Database, *, clock: Clock) -> None:
        self._service = service
        self._database = database
        self._clock = clock
        self._instances: dict[str, int] = {}
        self._alarms: list[MarketAlarm] = []
        self._state: MarketState | None = None
        self._charged_musd = self._supply_musd = 0
        self._read_at_s: float | None = None
        self._requests = self._failed = 0

    def count(self, succeeded: bool) -> None:
        """Count a call that needed a market."""
        self._requests += 1
        self._failed += not succeeded

    async def refresh(self) -> None:
        """Read everything anew; what was known stays where the database is down."""
        try:
            live = await self._service.rentals(user_id=None, is_live_only=True, limit=MAX_COUNTED)
            alarms, state = await self._service.alarms(), await self._service.state()
            charged, supply = await self._database.run(_sums, is_read_only=True)
        except ApplianceError:
            return
        self._instances = dict(Counter(rental.provider for rental in live))
        self._alarms, self._state = alarms, state
        self._charged_musd, self._supply_musd = charged, supply
        self._read_at_s = self._clock.monotonic_s()

    def checks(self) -> dict[str, dict[str, Any]]:
        """Return the check `market` of /healthz and /health: `error` while there is an alarm."""
        check: dict[str, Any] = {"status": "ok", "healthy": True}
        if self._alarms:
            shown = "; ".join(f"{one.kind}: {one.message}" for one in self._alarms[:MAX_SHOWN])
            check = {"status": "error", "healthy": False, "error": shown[:600]}
        return {"market": check}

    def figures(self) -> MarketFigures:
        """Return what the metrics show."""
        read_at_s = self._read_at_s
        return MarketFigures(
            instances=self._instances,
            requests=self._requests,
            failed=self._failed,
            cost_musd=self._charged_musd,
            supply_musd=self._supply_musd,
            alarms=Counter(one.kind for one in self._alarms),
            is_frozen=self._state is not None and self._state.is_frozen,
            age_s=None if read_at_s is None else self._clock.monotonic_s() - read_at_s,
        )


async def _sums(transaction: Transaction) -> tuple[int, int]:
    row = (await transaction.execute(SUMS))[0]
    return int(row.charged), int(row.supply)
