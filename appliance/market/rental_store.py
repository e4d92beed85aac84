"""Rentals and reservations in the database.

A row is worked on by one process at a time (`owner_until`); each that takes it over raises its `turn`, so
that what an earlier one still writes is refused. Requests of users change a row without taking it over: every
change reads the row in its own transaction, locked.
"""

import dataclasses
import os
from dataclasses import dataclass
from typing import Any, Final

from appliance.base import jsons
from appliance.base.clock import Clock
from appliance.market.rental_types import Rental
from appliance.storage.database import Database, Rows, Transaction
from appliance.storage.statements import statement_for

COLUMNS: Final = tuple(one.name for one in dataclasses.fields(Rental))
FIXED: Final = ("id", "label", "user_id", "wallet_id", "key_id", "created_at")
_CHANGED: Final = tuple(name for name in COLUMNS if name not in FIXED)
_INSERT: Final = (
    f"INSERT INTO rentals({', '.join(COLUMNS)}) VALUES ({', '.join(':' + name for name in COLUMNS)})"  # noqa: S608 - names of columns
)
_UPDATE: Final = f"UPDATE rentals SET {', '.join(f'{name} = :{name}' for name in _CHANGED)} WHERE id = :id"  # noqa: S608 - names of columns
LIVE: Final = "state NOT IN ('gone', 'failed', 'lost')"
_TAKE: Final = (
    "UPDATE rentals SET owner = :owner, owner_until = :until, turn = turn + 1 "
    "WHERE id = :id AND next_look_at IS NOT NULL AND owner_until <= :now RETURNING *"
)


class RentalTakenOver(Exception):
    """Another process has taken a row over: what this one wanted to write was not written."""


@dataclass(frozen=True, slots=True)
class RentalTurn:
    """A row that this process works on.

    Attributes:
        number: Of the row's `turn`.
    """

    rental_id: str
    number: int


@dataclass(frozen=True, slots=True)
class ReservationRow:
    """The row of a reservation; see `reservations` in storage.schema."""

    id: str
    user_id: str | None
    wallet_id: str
    key_id: str | None
    idempotency_key: str | None
    request: str
    count: int
    is_partial: bool
    state: str
    tries: int
    errors: list[str]
    created_at: int
    owner: str
    owner_until: int


def read_rental(row: Any) -> Rental:
    """Return the rental of a row."""
    values = {name: getattr(row, name) for name in COLUMNS}
    values["is_ceiling_told"] = bool(values["is_ceiling_told"])
    return Rental(**values)


def read_reservation(row: Any) -> ReservationRow:
    """Return the reservation of a row."""
    values = {one.name: getattr(row, one.name) for one in dataclasses.fields(ReservationRow)}
    return ReservationRow(
        **{**values, "is_partial": bool(row.is_partial), "errors": list(jsons.loads(row.errors))}
    )


class RentalStore:
    """The rows of rentals, for one process.

    Args:
        database: Where they are.
        clock: The time.
        lease_ms: For how long a row is worked on before another process may take it over.
    """

    def __init__(self, database: Database, clock: Clock, *, lease_ms: int = 30_000) -> None:
        self.database = database
        self.clock = clock
        self.owner = os.urandom(8).hex()
        self.lease_ms = lease_ms

    def now_ms(self) -> int:
        """Return the present time, epoch milliseconds."""
        return int(self.clock.now_s() * 1000)

    def _sql(self, statement: str) -> str:
        return statement_for(self.database.kind, statement)

    def _flag(self, value: bool) -> Any:
        return int(value) if self.database.kind == "sqlite" else value

    def _values(self, rental: Rental) -> dict[str, Any]:
        values = {name: getattr(rental, name) for name in COLUMNS}
        return {**values, "is_ceiling_told": self._flag(rental.is_ceiling_told), "updated_at": self.now_ms()}

    # ---- one rental

    async def insert(self, transaction: Transaction, rental: Rental) -> None:
        """Add a row.

        Raises:
            ConstraintViolated: The wallet has used its idempotency key before.
        """
        await transaction.execute(_INSERT, self._values(rental))

    async def lock(self, transaction: Transaction, rental_id: str) -> Rental | None:
        """Return a rental that no other transaction changes until this one ends; None = there is none."""
        rows = await transaction.execute(
            self._sql("SELECT * FROM rentals WHERE id = :id FOR UPDATE"), {"id": rental_id}
        )
        return read_rental(rows[0]) if rows else None

    async def lock_turn(self, transaction: Transaction, turn: RentalTurn) -> Rental:
        """The same, of a row that this process works on.

        Raises:
            RentalTakenOver: Another process does by now.
        """
        rental = await self.lock(transaction, turn.rental_id)
        if rental is None or rental.turn != turn.number or rental.owner != self.owner:
            raise RentalTakenOver(turn.rental_id)
        return rental

    async def write(self, transaction: Transaction, rental: Rental) -> None:
        """Write a rental that is locked."""
        values = self._values(rental)
        for name in FIXED[1:]:
            del values[name]
        await transaction.execute(_UPDATE, values)

    async def take(self, rental_id: str) -> tuple[Rental, RentalTurn] | None:
        """Work on a row from now on; None = another process does, or it has ended."""

        async def change(transaction: Transaction) -> Rows:
            now = self.now_ms()
            return await transaction.execute(
                _TAKE,
                {"id": rental_id, "owner": self.owner, "now": now, "until": now + self.lease_ms},
            )

        rows = await self.database.run(change)
        if not rows:
            return None
        rental = read_rental(rows[0])
        return rental, RentalTurn(rental.id, rental.turn)

    async def let_go(self, turn: RentalTurn) -> None:
        """Stop working on a row; nothing is done where another process works on it by now."""

        async def change(transaction: Transaction) -> None:
            await transaction.execute(
                "UPDATE rentals SET owner_until = 0 WHERE id = :id AND turn = :turn AND owner = :owner",
                {"id": turn.rental_id, "turn": turn.number, "owner": self.owner},
            )

        await self.database.run(change)

    async def release_all(self) -> None:
        """Let all rows be worked on at once: no other process uses the database."""

        async def change(transaction: Transaction) -> None:
            await transaction.execute("UPDATE rentals SET owner_until = 0 WHERE owner_until > 0")

        await self.database.run(change)

    async def due(self, *, provider: str = "", limit: int = 64) -> list[str]:
        """Return the rentals that are to be looked at, those of reservations under way left out.

        Args:
            provider: At this market alone; "" = at all.
            limit: So many at most, those first that wait longest.
        """

        async def read(transaction: Transaction) -> Rows:
            return await transaction.execute(
                "SELECT r.id FROM rentals r LEFT JOIN reservations s ON s.id = r.reservation_id "
                "WHERE r.next_look_at <= :now AND r.owner_until <= :now "
                "AND (:provider = '' OR r.provider = :provider) "
                "AND (s.state IS NULL OR s.state <> 'open') ORDER BY r.next_look_at, r.id LIMIT :limit",
                {"now": self.now_ms(), "limit": limit, "provider": provider},
            )

        return [row.id for row in await self.database.run(read, is_read_only=True)]

    # ---- many of them

    async def select(self, where: str, parameters: dict[str, Any], *, limit: int = 1000) -> list[Rental]:
        """Return the rentals of a condition, newest first.

        Args:
            where: SQL, of constants of this package.
            parameters: Its values.
        """

        async def read(transaction: Transaction) -> Rows:
            return await transaction.execute(
                f"SELECT * FROM rentals WHERE {where} ORDER BY created_at DESC, id DESC LIMIT :limit",  # noqa: S608 - constants
                {**parameters, "limit": max(1, min(limit, 1000))},
            )

        return [read_rental(row) for row in await self.database.run(read, is_read_only=True)]

    async def live(self, *, provider: str = "") -> list[Rental]:
        """Return the rentals that have not ended."""
        where = f"{LIVE} AND (:provider = '' OR provider = :provider)"
        return await self.select(where, {"provider": provider})

    async def without_payer(self) -> list[str]:
        """Return the rentals that go on though their user was deleted."""

        async def read(transaction: Transaction) -> Rows:
            return await transaction.execute(
                "SELECT r.id FROM rentals r JOIN wallets w ON w.id = r.wallet_id "
                "WHERE r.next_look_at IS NOT NULL AND r.end_state = '' AND w.state = 'closed' ORDER BY r.id"
            )

        return [row.id for row in await self.database.run(read, is_read_only=True)]

    async def of_reservation(self, transaction: Transaction, reservation_id: str) -> list[Rental]:
        """Return the rentals of a reservation, locked, in the order of their ids."""
        rows = await transaction.execute(
            self._sql("SELECT * FROM rentals WHERE reservation_id = :id ORDER BY id FOR UPDATE"),
            {"id": reservation_id},
        )
        return [read_rental(row) for row in rows]

    async def find_ordered(
        self, transaction: Transaction, wallet_id: str, idempotency_key: str
    ) -> Rental | None:
        """Return the rental that a wallet's idempotency key has made; None = there is none."""
        rows = await transaction.execute(
            "SELECT * FROM rentals WHERE wallet_id = :wallet AND idempotency_key = :key",
            {"wallet": wallet_id, "key": idempotency_key},
        )
        return read_rental(rows[0]) if rows else None

    async def find_reservation(
        self, transaction: Transaction, wallet_id: str, idempotency_key: str
    ) -> ReservationRow | None:
        """The same, of reservations."""
        rows = await transaction.execute(
            "SELECT * FROM reservations WHERE wallet_id = :wallet AND idempotency_key = :key",
            {"wallet": wallet_id, "key": idempotency_key},
        )
        return read_reservation(rows[0]) if rows else None

    # ---- reservations

    async def insert_reservation(self, transaction: Transaction, one: ReservationRow) -> None:
        """Add a reservation."""
        await transaction.execute(
            "INSERT INTO reservations(id, user_id, wallet_id, key_id, idempotency_key, request, count, "
            "is_partial, state, tries, errors, created_at, updated_at, owner, owner_until) VALUES (:id, "
            ":user_id, :wallet_id, :key_id, :idempotency_key, :request, :count, :is_partial, :state, :tries, "
            ":errors, :created_at, :created_at, :owner, :owner_until)",
            {
                **dataclasses.asdict(one),
                "is_partial": self._flag(one.is_partial),
                "errors": jsons.dumps_text(one.errors),
            },
        )

    async def change_reservation(
        self,
        transaction: Transaction,
        reservation_id: str,
        *,
        expected: str,
        state: str,
        errors: list[str] | None = None,
        tries: int | None = None,
    ) -> bool:
        """Change a reservation's state; False = it is in another one than was expected."""
        now = self.now_ms()
        done = await transaction.execute(
            "UPDATE reservations SET state = :state, errors = COALESCE(:errors, errors), "
            "tries = COALESCE(CAST(:tries AS BIGINT), tries), updated_at = :now, "
            "owner_until = :until "
            "WHERE id = :id AND state = :expected",
            {
                "id": reservation_id,
                "state": state,
                "expected": expected,
                "errors": None if errors is None else jsons.dumps_text(errors[:100]),
                "tries": tries,
                "now": now,
                "until": now + self.lease_ms if state == "open" else 0,
            },
        )
        return done.changed == 1

    async def finish_rolled_back(self) -> None:
        """Note the reservations of which nothing is left."""

        async def change(transaction: Transaction) -> None:
            await transaction.execute(
                "UPDATE reservations SET state = 'rolled_back', updated_at = :now "  # noqa: S608 - constants
                "WHERE state = 'rolling_back' AND NOT EXISTS (SELECT 1 FROM rentals r "
                f"WHERE r.reservation_id = reservations.id AND r.{LIVE})",
                {"now": self.now_ms()},
            )

        await self.database.run(change)

    async def abandoned_reservations(self, *, is_alone: bool) -> list[str]:
        """Return the reservations that no process makes any more.

        Args:
            is_alone: No other process uses the database: those of all others are abandoned.
        """

        async def read(transaction: Transaction) -> Rows:
            return await transaction.execute(
                "SELECT id FROM reservations WHERE state = 'open' "
                "AND (owner_until <= :now OR (:is_alone AND owner <> :owner)) ORDER BY id",
                {"now": self.now_ms(), "owner": self.owner, "is_alone": self._flag(is_alone)},
            )

        return [row.id for row in await self.database.run(read, is_read_only=True)]

    # ---- what was used, as the seed lists it

    async def note_usage(self, transaction: Transaction, rental: Rental) -> None:
        """Write what a rental has used so far."""
        if rental.billed_from is None or rental.user_id is None:
            return
        until = rental.billed_until or rental.last_seen_at or rental.billed_from
        await transaction.execute(
            "INSERT INTO gpu_usage(id, user_id, provider, instance_id, gpu_model, start_time, end_time, "
            "duration, cost_musd, billing_id) VALUES (:id, :user, :provider, :instance, :gpu, :start, :end, "
            ":duration, :cost, :id) ON CONFLICT (id) DO UPDATE SET end_time = excluded.end_time, "
            "duration = excluded.duration, cost_musd = excluded.cost_musd",
            {
                "id": rental.id,
                "user": rental.user_id,
                "provider": rental.provider,
                "instance": rental.contract_id,
                "gpu": rental.gpu_name,
                "start": rental.billed_from,
                "end": rental.billed_until,
                "duration": max(0, until - rental.billed_from) // 1000,
                "cost": rental.charged_musd,
            },
        )
