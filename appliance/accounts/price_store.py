"""The prices of the database: versions are added and never changed; each change is told to all replicas."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, Final

from sqlalchemy import insert, select

from appliance.accounts.audit_log import Author, write_audit
from appliance.accounts.changes import ChangeFeed
from appliance.accounts.prices import Price
from appliance.base.clock import Clock
from appliance.base.errors import Conflict
from appliance.storage.database import ConstraintViolated, Database, Transaction
from appliance.storage.schema import prices

KIND: Final = "price"  # of rows in `changes`; their id is the model's name
TRIES: Final = 5


class PriceStore:
    """All versions of all prices.

    Args:
        changes: Told of each model whose price has a new version.
    """

    def __init__(self, database: Database, changes: ChangeFeed, *, clock: Clock) -> None:
        self._database = database
        self._changes = changes
        self._clock = clock

    async def read(self) -> list[Price]:
        """Return every version of every price, those of the future included.

        Raises:
            StoreUnavailable: The database is down.
        """
        async with self._database.transaction(is_read_only=True) as transaction:
            return await self._read(transaction)

    async def add(self, wanted: Iterable[Price], *, author: Author) -> list[Price]:
        """Add a version of each price that differs from the one that would be in force without it.

        Args:
            wanted: At most one of a model and a time; `valid_from_ms` 0 = now. Their versions do not count.
            author: Who sets them.

        Returns:
            The versions that were added.

        Raises:
            Conflict: Others set the same prices again and again.
            StoreUnavailable: The database is down; nothing was added.
        """
        given = list(wanted)

        async def work(transaction: Transaction) -> list[Price]:
            now_ms = round(self._clock.now_s() * 1000)
            added = choose_versions(await self._read(transaction), given, now_ms)
            rows = [_to_row(price, author, now_ms) for price in added]
            if rows:
                await transaction.execute(insert(prices), rows)
            for price in added:
                details = {"version": price.version, "price": price.describe()}
                await write_audit(
                    transaction,
                    self._clock,
                    author,
                    "price.set",
                    subject=("price", price.model),
                    details=details,
                )
            await self._changes.note(transaction, KIND, dict.fromkeys(price.model for price in added))
            return added

        for _ in range(TRIES):
            try:
                added = await self._database.run(work)
            except ConstraintViolated as error:
                if not error.is_duplicate:
                    raise
                continue  # another process has added the same version meanwhile
            if added:
                await self._changes.announce()
            return added
        raise Conflict("Others are setting the same prices. Try again.", code="prices_changing")

    async def _read(self, transaction: Transaction) -> list[Price]:
        query = select(prices).order_by(prices.c.model, prices.c.version)
        return [_from_row(row) for row in await transaction.execute(query)]


def choose_versions(there: Iterable[Price], wanted: Iterable[Price], now_ms: int) -> list[Price]:
    """Return the versions to add: numbered, with their time, without those that would change nothing.

    Args:
        there: All versions that there are.
        wanted: `valid_from_ms` 0 = now.
        now_ms: Epoch milliseconds.
    """
    versions: dict[str, list[Price]] = defaultdict(list)
    for price in there:
        versions[price.model].append(price)
    added = []
    for price in wanted:
        of_model = versions[price.model]
        start_ms = price.valid_from_ms or now_ms
        before = [one for one in of_model if one.valid_from_ms <= start_ms]
        in_force = max(before, key=lambda one: (one.valid_from_ms, one.version), default=None)
        if in_force is not None and _figures(in_force) == _figures(price):
            continue
        number = max((one.version for one in of_model), default=0) + 1
        new = replace(price, version=number, valid_from_ms=start_ms)
        of_model.append(new)
        added.append(new)
    return added


def _figures(price: Price) -> Price:
    return replace(price, version=0, valid_from_ms=0)


def _to_row(price: Price, author: Author, now_ms: int) -> dict[str, Any]:
    return {
        "model": price.model,
        "version": price.version,
        "valid_from": price.valid_from_ms,
        "in_musd": price.in_per_mtok,
        "cached_in_musd": price.cached_in_per_mtok,
        "out_musd": price.out_per_mtok,
        "embedding_musd": price.embedding_per_mtok,
        "per_request_musd": price.per_request_musd,
        "gpu_hour_markup_percent": price.gpu_hour_markup_percent,
        "created_by": author.id or author.kind,
        "created_at": now_ms,
    }


def _from_row(row: Any) -> Price:
    return Price(
        model=row.model,
        version=row.version,
        valid_from_ms=row.valid_from,
        in_per_mtok=row.in_musd,
        cached_in_per_mtok=row.in_musd if row.cached_in_musd is None else row.cached_in_musd,
        out_per_mtok=row.out_musd,
        embedding_per_mtok=row.embedding_musd,
        per_request_musd=row.per_request_musd,
        gpu_hour_markup_percent=row.gpu_hour_markup_percent,
    )
