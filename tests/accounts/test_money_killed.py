"""A process is killed at each of its steps with money; the next start puts everything right (I5)."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from appliance.accounts.audit import find_differences
from appliance.accounts.meter import Payer
from appliance.accounts.prices import TokenUsage
from appliance.accounts.settlement import Ending
from appliance.base.tasks import Tasks
from appliance.storage.database import Database
from appliance.storage.settings import StorageSettings
from tests.accounts.conftest import EMPTY
from tests.accounts.metering import order
from tests.accounts.money import Replica
from tests.storage_servers import PostgresServer, make_sqlite, opened

# Each is a fault point before and one after it.
POINTS = (
    ("journal", "begin"),
    ("journal", "progress"),
    ("journal", "end"),
    ("journal", "lease"),
    ("journal", "settled"),
    ("wallets", "lease"),
    ("wallets", "give_back"),
    ("wallets", "give_back_all"),
    ("usage", "settle"),
)
Opener = Callable[[], Any]


class Killer:
    """Kills this process at the fault point of a number, counted from 1."""

    def __init__(self, at: int) -> None:
        self.at = at
        self.passed = 0

    def point(self) -> None:
        self.passed += 1
        if self.passed == self.at:
            os.kill(os.getpid(), signal.SIGKILL)

    def watch(self, owner: Any, name: str) -> None:
        call = getattr(owner, name)

        def plain(*arguments: Any, **options: Any) -> Any:
            self.point()
            result = call(*arguments, **options)
            self.point()
            return result

        async def waiting(*arguments: Any, **options: Any) -> Any:
            self.point()
            result = await call(*arguments, **options)
            self.point()
            return result

        setattr(owner, name, waiting if asyncio.iscoroutinefunction(call) else plain)


async def work(database: Database, folder: Path, at: int, say: Callable[[str], None]) -> int:
    """What the process does that is killed; return how many fault points there are."""
    killer = Killer(at)
    async with Tasks() as tasks:
        one = Replica(database, folder, tasks, most_musd=400)
        await one.recover()
        for owner, name in POINTS:
            killer.watch(getattr(one, owner), name)
        for number in range(3):
            meter = await one.metering.begin(order(payer=Payer("w1", client_id="c")))
            meter.attempt("s", "b")
            attempt_id = meter._note.attempt_id  # type: ignore[union-attr]
            say(f"began {attempt_id}")
            for _ in range(40):
                meter.took(1, 200)
            if number == 1:
                continue  # it runs on
            settlement = meter.end(Ending.COMPLETE, TokenUsage(10, 0, 40))
            assert settlement is not None
            say(f"ended {attempt_id} {settlement.end.charged_musd}")
            meter.close()
            await one.settler.drain()
        await one.allowances.return_asked("w1")
        await asyncio.sleep(0)
        await one.stop()
    return killer.passed


def run_child(opener: Opener, folder: Path, at: int) -> tuple[bool, list[list[str]], int]:
    """Run `work` in a process; return whether it was killed, what it said, how many points it passed."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:

            async def main() -> int:
                async with opener() as database:
                    return await work(
                        database, folder, at, lambda line: void(os.write(write, f"{line}\n".encode()))
                    )

            os.write(write, f"points {asyncio.run(main())}\n".encode())
        except BaseException as error:
            os.write(write, f"failed {error!r}\n".encode())
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        lines = [line.split() for line in pipe.read().splitlines()]
    _, status = os.waitpid(child, 0)
    assert not [line for line in lines if line[0] == "failed"], lines
    points = [int(line[1]) for line in lines if line[0] == "points"]
    return os.WIFSIGNALED(status), lines, points[0] if points else 0


def void(_: object) -> None:
    """Drop a result."""


async def start_again(opener: Opener, folder: Path, lines: list[list[str]]) -> None:
    """Start after the kill, and see that every attempt has one row, and the money is right."""
    async with opener() as database, Tasks() as tasks:
        one = Replica(database, folder, tasks)
        recovered = await one.recover()
        assert not recovered.is_offline
        rows = {
            row.attempt_id: row.charged_musd
            for row in await one.sql("SELECT attempt_id, charged_musd FROM usage")
        }
        began = {line[1] for line in lines if line[0] == "began"}
        assert began <= set(rows)
        assert len(set(rows) - began) <= 1  # killed before it could say so
        for line in lines:
            if line[0] == "ended":
                assert rows[line[1]] == int(line[2])
        wallet = await one.wallets.find("w1")
        assert (wallet.leased_musd, wallet.used_musd) == (0, sum(rows.values()))
        assert await find_differences(database) == []
        await one.recover()
        assert (await one.wallets.find("w1")).used_musd == wallet.used_musd
        # and it works on
        meter = await one.metering.begin(order(payer=Payer("w1", client_id="c")))
        meter.attempt("s", "b")
        meter.close()
        await one.stop()
        assert (await one.wallets.find("w1")).leased_musd == 0


def run_at(opener: Opener, folder: Path, at: int) -> int:
    """Kill at one fault point and start again; return how many points were passed where it was not killed."""

    async def prepare() -> None:
        async with opener() as database, Tasks() as tasks:
            one = Replica(database, folder / "other", tasks, "setup")
            await one.open("w1", extra=5000)

    asyncio.run(prepare())
    is_killed, lines, points = run_child(opener, folder, at)
    assert is_killed == (points == 0)
    asyncio.run(start_again(opener, folder, lines))
    return points


def make_opener(settings: StorageSettings, folder: Path) -> Opener:
    @asynccontextmanager
    async def open_it() -> AsyncIterator[Database]:
        async with opened(settings, folder) as one:
            yield one

    return open_it


def test_a_kill_at_any_step_loses_and_doubles_nothing_in_sqlite(tmp_path: Path) -> None:
    at = points = 0
    while not points:
        at += 1
        folder = tmp_path / str(at)
        folder.mkdir()
        make_sqlite(folder / "gpuproxy.db")
        points = run_at(make_opener(StorageSettings(), folder), folder / "journal", at)
    assert at == points + 1 > 30


@pytest.mark.parametrize("at", [1, 3, 5, 9, 13, 17, 21, 25, 29, 33])
def test_a_kill_at_a_step_loses_and_doubles_nothing_in_postgres(
    tmp_path: Path, postgres_server: PostgresServer, shared_postgres_name: str, at: int
) -> None:
    asyncio.run(postgres_server.sql(EMPTY, shared_postgres_name))
    run_at(make_opener(postgres_server.settings(shared_postgres_name), tmp_path), tmp_path / "journal", at)
