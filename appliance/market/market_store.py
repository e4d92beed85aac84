"""What holds for all rentals, in the database: launching, listings, balances, machines that are avoided."""

import os
from typing import Any, Final

from appliance.base.clock import Clock
from appliance.base.errors import Unavailable
from appliance.market.brake import HOUR_MS, MarketUse, after_start
from appliance.market.rental_store import LIVE
from appliance.market.rental_types import MarketState
from appliance.storage.database import Database, Rows, Transaction
from appliance.storage.statements import statement_for

STATE_ID: Final = "market"


class MarketStore:
    """The rows that belong to no single rental, for one process.

    Args:
        database: Where they are.
        clock: The time.
        owner: This process.
    """

    def __init__(self, database: Database, clock: Clock, owner: str) -> None:
        self.database = database
        self.clock = clock
        self._owner = owner
        self.install_id = ""

    def now_ms(self) -> int:
        """Return the present time, epoch milliseconds."""
        return int(self.clock.now_s() * 1000)

    def _sql(self, statement: str) -> str:
        return statement_for(self.database.kind, statement)

    def _flag(self, value: bool) -> Any:
        return int(value) if self.database.kind == "sqlite" else value

    async def open(self) -> None:
        """Make the row of what holds for all, once for an installation, and read the installation's id."""

        async def change(transaction: Transaction) -> None:
            await transaction.execute(
                "INSERT INTO market_state(id, install_id, updated_at) VALUES (:id, :install, :now) "
                "ON CONFLICT (id) DO NOTHING",
                {"id": STATE_ID, "install": os.urandom(4).hex(), "now": self.now_ms()},
            )

        await self.database.run(change)
        self.install_id = (await self.state()).install_id

    async def market_row(self, transaction: Transaction, *, is_locked: bool = False) -> Any:
        """Return the row of what holds for all.

        Raises:
            Unavailable: It is not made yet: the database was down until now.
        """
        lock = " FOR UPDATE" if is_locked else ""
        rows = await transaction.execute(
            self._sql(f"SELECT * FROM market_state WHERE id = :id{lock}"),  # noqa: S608 - constants
            {"id": STATE_ID},
        )
        if not rows:
            raise Unavailable("Renting begins in some seconds: ask again then.", retry_after_s=2.0)
        return rows[0]

    async def change_market(self, transaction: Transaction, **values: Any) -> None:
        """Write columns of the row of what holds for all."""
        parts = ", ".join(f"{name} = :{name}" for name in values)
        if "is_frozen" in values:
            values["is_frozen"] = self._flag(values["is_frozen"])
        await transaction.execute(
            f"UPDATE market_state SET {parts}, updated_at = :now WHERE id = :id",  # noqa: S608 - names of columns
            {**values, "now": self.now_ms(), "id": STATE_ID},
        )

    async def note_start(self, transaction: Transaction, is_started: bool) -> None:
        """Count a start that succeeded or failed."""
        row = await self.market_row(transaction, is_locked=True)
        failed, paused = after_start(row.failed_starts, is_started, self.now_ms())
        if failed != row.failed_starts or paused is not None:
            more = {} if paused is None else {"paused_until": paused}
            await self.change_market(transaction, failed_starts=failed, **more)

    async def use(self, transaction: Transaction, *, wallet_id: str) -> MarketUse:
        """Return what is rented now; other launches wait until the transaction ends."""
        state = await self.market_row(transaction, is_locked=True)
        now = self.now_ms()
        by_provider = await transaction.execute(
            "SELECT provider, COUNT(*) AS live, CAST(SUM(supply_musd_per_h) AS BIGINT) AS musd "  # noqa: S608 - constants
            f"FROM rentals WHERE {LIVE} GROUP BY provider"
        )
        own = await transaction.execute(
            f"SELECT COUNT(*) AS live FROM rentals WHERE wallet_id = :wallet AND {LIVE} "  # noqa: S608 - constants
            "AND state <> 'destroying'",
            {"wallet": wallet_id},
        )
        launched = await transaction.execute(
            "SELECT COUNT(*) AS launched, MIN(created_at) AS first FROM rentals "
            "WHERE wallet_id = :wallet AND created_at > :since",
            {"wallet": wallet_id, "since": now - HOUR_MS},
        )
        listings = await transaction.execute("SELECT * FROM market_listings")
        first = launched[0].first
        return MarketUse(
            live=sum(row.live for row in by_provider),
            live_of_user=own[0].live,
            launched_of_user=launched[0].launched,
            next_launch_ms=None if first is None else first + HOUR_MS,
            supply_musd_per_h=sum(row.musd for row in by_provider),
            supply_of_provider={row.provider: row.musd for row in by_provider},
            unknown_since_ms={
                row.provider: row.unknown_since for row in listings if row.unknown_since is not None
            },
            credit_musd={row.provider: row.credit_musd for row in listings if row.credit_musd is not None},
            is_frozen=bool(state.is_frozen),
            frozen_reason=state.frozen_reason,
            paused_until_ms=state.paused_until,
        )

    async def leased_gpu_seconds(self, transaction: Transaction, user_id: str) -> int:
        """Return the GPU time that a user's live rentals may still use."""
        rows = await transaction.execute(
            "SELECT lease_ends_at, created_at, billed_from, gpu_count, gpu_seconds FROM rentals "  # noqa: S608 - constants
            f"WHERE user_id = :user AND {LIVE} AND state <> 'destroying'",
            {"user": user_id},
        )
        return sum(
            max(
                0,
                (row.lease_ends_at - (row.billed_from or row.created_at)) * row.gpu_count // 1000
                - row.gpu_seconds,
            )
            for row in rows
        )

    async def state(self) -> MarketState:
        """Return what holds for all."""

        async def read(transaction: Transaction) -> tuple[Any, Rows]:
            row = await self.market_row(transaction)
            return row, await transaction.execute("SELECT * FROM market_listings")

        row, listings = await self.database.run(read, is_read_only=True)
        return MarketState(
            install_id=row.install_id,
            is_frozen=bool(row.is_frozen),
            frozen_reason=row.frozen_reason,
            frozen_by=row.frozen_by,
            failed_starts=row.failed_starts,
            paused_until_ms=row.paused_until,
            unknown_since_ms={
                one.provider: one.unknown_since for one in listings if one.unknown_since is not None
            },
            credit_musd={one.provider: one.credit_musd for one in listings if one.credit_musd is not None},
        )

    async def note_listing(self, provider: str, *, is_known: bool) -> None:
        """Note whether a market's listing was complete."""
        now = self.now_ms()
        statement = (
            "INSERT INTO market_listings(provider, listed_at) VALUES (:provider, :now) ON CONFLICT "
            "(provider) DO UPDATE SET listed_at = excluded.listed_at, unknown_since = NULL"
            if is_known
            else "INSERT INTO market_listings(provider, unknown_since) VALUES (:provider, :now) "
            "ON CONFLICT (provider) DO UPDATE "
            "SET unknown_since = COALESCE(market_listings.unknown_since, excluded.unknown_since)"
        )

        async def change(transaction: Transaction) -> None:
            await transaction.execute(statement, {"provider": provider, "now": now})

        await self.database.run(change)

    async def note_credit(self, provider: str, musd: int | None) -> None:
        """Note our balance at a market; None = it does not tell."""

        async def change(transaction: Transaction) -> None:
            await transaction.execute(
                "INSERT INTO market_listings(provider, credit_musd, credit_at) VALUES (:provider, :musd, "
                ":now) ON CONFLICT (provider) DO UPDATE SET credit_musd = excluded.credit_musd, "
                "credit_at = excluded.credit_at",
                {"provider": provider, "musd": musd, "now": self.now_ms()},
            )

        await self.database.run(change)

    async def take_sweep(self, for_ms: int) -> bool:
        """Return whether this process is the one that sweeps; it stays so for a while."""

        async def change(transaction: Transaction) -> bool:
            now = self.now_ms()
            done = await transaction.execute(
                "UPDATE market_state SET sweeper = :owner, sweeper_until = :until "
                "WHERE id = :id AND (sweeper = :owner OR sweeper_until <= :now)",
                {"owner": self._owner, "until": now + for_ms, "now": now, "id": STATE_ID},
            )
            return done.changed == 1

        return await self.database.run(change)

    # ---- machines that are avoided

    async def avoid(
        self, transaction: Transaction, provider: str, machine_id: str, *, until_ms: int, reason: str
    ) -> None:
        """Rent nothing at a machine for a while."""
        await transaction.execute(
            "INSERT INTO avoided_machines(provider, machine_id, until, reason) "
            "VALUES (:provider, :machine, :until, :reason) ON CONFLICT (provider, machine_id) "
            "DO UPDATE SET until = excluded.until, reason = excluded.reason",
            {"provider": provider, "machine": machine_id, "until": until_ms, "reason": reason},
        )

    async def avoided(self) -> set[tuple[str, str]]:
        """Return the machines that are avoided now: (market, machine)."""

        async def read(transaction: Transaction) -> Rows:
            return await transaction.execute(
                "SELECT provider, machine_id FROM avoided_machines WHERE until > :now", {"now": self.now_ms()}
            )

        return {(row.provider, row.machine_id) for row in await self.database.run(read, is_read_only=True)}

    async def forget_avoided(self) -> None:
        """Remove the machines whose time is over."""

        async def change(transaction: Transaction) -> None:
            await transaction.execute(
                "DELETE FROM avoided_machines WHERE until <= :now", {"now": self.now_ms()}
            )

        await self.database.run(change)

    async def other_replicas(self, within_ms: int = 60_000) -> int:
        """Return how many other processes use the database, apart from the one that notes itself last."""
        if self.database.kind == "sqlite":
            return 0

        async def read(transaction: Transaction) -> Rows:
            return await transaction.execute(
                "SELECT COUNT(*) AS n FROM replicas WHERE seen_at > :since",
                {"since": self.now_ms() - within_ms},
            )

        rows = await self.database.run(read, is_read_only=True)
        seen: int = rows[0].n
        return max(0, seen - 1)
