"""The prices of the database last over a restart while it is down, and only where nobody has changed the file."""

from pathlib import Path

from appliance.accounts.price_snapshot import PriceSnapshot
from appliance.accounts.prices import Price
from appliance.base.tasks import Tasks
from appliance.storage.database import Database
from tests.accounts.parts import AUTHOR
from tests.accounts.test_money_parts import build

SECRET = "an-old-secret-of-tests-which-is-long-enough-0123456789-abcdefghij"
PRICES = [Price("m", 3, 17, 1_000_000, 500_000, 2_000_000, 4, 5, 6), Price("*", out_per_mtok=1)]


def test_prices_are_read_as_they_were_written(tmp_path: Path) -> None:
    file = PriceSnapshot(tmp_path / "prices-snapshot", SECRET)
    assert file.load() == []
    file.write(PRICES)
    assert file.load() == PRICES
    assert (tmp_path / "prices-snapshot").stat().st_mode & 0o777 == 0o600


def test_a_changed_file_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "prices-snapshot"
    PriceSnapshot(path, SECRET).write(PRICES)
    assert PriceSnapshot(path, SECRET + "x").load() == []
    path.write_bytes(path.read_bytes().replace(b"2000000", b"0000002"))
    assert PriceSnapshot(path, SECRET).load() == []
    path.write_bytes(b"")
    assert PriceSnapshot(path, SECRET).load() == []


def test_a_folder_that_cannot_be_written_stops_nothing(tmp_path: Path) -> None:
    PriceSnapshot(tmp_path / "missing" / "deep", SECRET).write(PRICES)
    (tmp_path / "folder").mkdir()
    assert PriceSnapshot(tmp_path / "folder", SECRET).load() == []


async def test_a_start_without_the_database_has_the_prices_of_before(
    database: Database, tmp_path: Path
) -> None:
    async with Tasks() as tasks:
        one = build(database, tmp_path, tasks)
        await one.start()
        await one.store.prices.add([Price("m", in_per_mtok=7)], author=AUTHOR)
        await one.read_prices()
        await one.close()
    await database.close()
    async with Tasks() as tasks:
        again = build(database, tmp_path, tasks)
        again.file_prices = [Price("m", in_per_mtok=1), Price("n", in_per_mtok=2)]
        await again.start()
        at_ms = 10**13
        assert again.book.price_of("m", at_ms).in_per_mtok == 7  # that of the database counts
        assert again.book.price_of("n", at_ms).in_per_mtok == 2
        again.set_file_prices([Price("n", in_per_mtok=3)])
        assert again.book.price_of("n", at_ms).in_per_mtok == 3
        assert again.book.price_of("m", at_ms).in_per_mtok == 7
        await again.close()
