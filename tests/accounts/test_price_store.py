"""Prices in the database: versions are added, never changed; on SQLite and PostgreSQL."""

import asyncio

import pytest

from appliance.accounts.changes import ChangeFeed
from appliance.accounts.price_store import PriceStore, choose_versions
from appliance.accounts.prices import Price, PriceBook
from appliance.base.clock import FakeClock, SystemClock
from appliance.storage.database import Database
from tests.accounts.parts import AUTHOR

A = Price("a", in_per_mtok=600_000, cached_in_per_mtok=150_000, out_per_mtok=800_000)
OLD = Price("a", 1, 1000, 600_000, 150_000, 800_000)
NEW = Price("a", 2, 2000, 700_000, 150_000, 800_000)


@pytest.mark.parametrize(
    ("there", "wanted", "added"),
    [
        ([], [A], [Price("a", 1, 5000, 600_000, 150_000, 800_000)]),
        ([OLD], [A], []),
        ([OLD, NEW], [A], [Price("a", 3, 5000, 600_000, 150_000, 800_000)]),
        # a price of the future is not in force yet
        ([OLD, Price("a", 2, 9000, 1)], [A], []),
        ([OLD], [Price("a", 0, 9000, 1)], [Price("a", 2, 9000, 1)]),
        # twice in one call: the second one is compared with the first one
        ([], [A, A], [Price("a", 1, 5000, 600_000, 150_000, 800_000)]),
        ([], [Price("*"), A], [Price("*", 1, 5000), Price("a", 1, 5000, 600_000, 150_000, 800_000)]),
    ],
)
def test_only_prices_that_change_something_get_a_version(
    there: list[Price], wanted: list[Price], added: list[Price]
) -> None:
    assert choose_versions(there, wanted, 5000) == added


async def test_versions_are_kept_and_told_to_all_replicas(database: Database) -> None:
    clock = FakeClock()
    changes = ChangeFeed(database, clock=clock)
    store = PriceStore(database, changes, clock=clock)
    heard: list[str] = []

    async def hear(ids: set[str]) -> None:
        heard.extend(sorted(ids))

    changes.on("price", hear)
    await changes.start()
    one = Price(
        "a", in_per_mtok=10, cached_in_per_mtok=5, out_per_mtok=20, embedding_per_mtok=7, per_request_musd=3
    )
    (first,) = await store.add([one], author=AUTHOR)
    assert await store.add([one], author=AUTHOR) == []
    clock.advance(60)
    (second,) = await store.add([Price("a", out_per_mtok=30)], author=AUTHOR)
    assert await store.read() == [first, second]
    assert (first.version, second.version) == (1, 2)
    book = PriceBook(await store.read())
    assert book.price_of("a", first.valid_from_ms) == first
    assert book.price_of("a", second.valid_from_ms) == second
    await changes.read()
    assert heard == ["a"]
    async with database.transaction(is_read_only=True) as transaction:
        rows = await transaction.execute("SELECT action, subject_id, details FROM audit ORDER BY id")
    assert [(row.action, row.subject_id) for row in rows] == [("price.set", "a"), ("price.set", "a")]
    assert "0.00003 out" in rows[1].details


async def test_prices_set_at_the_same_time_all_get_a_version(database: Database) -> None:
    clock = SystemClock()
    store = PriceStore(database, ChangeFeed(database, clock=clock), clock=clock)
    await asyncio.gather(
        *(store.add([Price("a", in_per_mtok=number)], author=AUTHOR) for number in range(1, 5))
    )
    rows = await store.read()
    assert [row.version for row in rows] == [1, 2, 3, 4]
    assert {row.in_per_mtok for row in rows} == {1, 2, 3, 4}
