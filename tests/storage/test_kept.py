"""What was acknowledged is there after a crash, whole and once; what was not is there whole or not at all."""

import asyncio
import itertools
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

from appliance.storage.database import Database, StoreUnavailable
from appliance.storage.settings import StorageSettings
from tests.storage.test_away import own_server
from tests.storage.test_redis_store import until
from tests.storage_servers import PostgresServer, opened

__all__ = ["own_server"]
CALLERS = 20
ADD = "INSERT INTO changes(at, kind, id) VALUES (1, :half, :id)"


async def add_pair(database: Database, name: str) -> None:
    async with database.transaction() as transaction:
        await transaction.execute(ADD, {"half": "first", "id": name})
        await transaction.execute(ADD, {"half": "second", "id": name})


async def write_without_end(folder: Path) -> None:
    """Add pairs, and print each that was acknowledged: what the process that is killed runs."""
    async with opened(StorageSettings(), folder) as database:

        async def caller(number: int) -> None:
            for count in itertools.count():
                await add_pair(database, f"{number}-{count}")
                print(f"kept {number}-{count}", flush=True)

        await asyncio.gather(*map(caller, range(CALLERS)))


async def check(database: Database, acknowledged: list[str]) -> None:
    async with database.transaction(is_read_only=True) as transaction:
        rows = await transaction.execute("SELECT kind, id FROM changes")
    counts = Counter((row.kind, row.id) for row in rows)
    first, second = ({name for kind, name in counts if kind == half} for half in ("first", "second"))
    assert set(counts.values()) == {1}
    assert first == second
    assert set(acknowledged) <= first
    assert len(first) - len(acknowledged) <= CALLERS * 2


async def test_a_killed_process_leaves_what_it_acknowledged(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.storage.test_kept", str(tmp_path)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    acknowledged = []
    for line in process.stdout:
        if line.startswith("kept "):
            acknowledged.append(line.split()[1])
        if len(acknowledged) == 300:
            process.kill()
            break
    acknowledged += [
        line.split()[1] for line in process.stdout if line.startswith("kept ") and line.endswith("\n")
    ]
    assert process.wait(20) == -signal.SIGKILL
    async with opened(StorageSettings(), tmp_path) as database:
        await check(database, acknowledged)


COPY = """
import sqlite3, sys
source, copy = sqlite3.connect(sys.argv[1]), sqlite3.connect(sys.argv[2])
source.backup(copy)
print(copy.execute("SELECT count(*) FROM changes").fetchone()[0])
copy.close()
source.close()
"""


async def test_a_copy_by_another_program_leaves_the_log_that_is_written_to(tmp_path: Path) -> None:
    def copy(name: str) -> int:
        words = [sys.executable, "-c", COPY, str(tmp_path / "gpuproxy.db"), str(tmp_path / name)]
        return int(subprocess.run(words, capture_output=True, text=True, check=True).stdout)

    async with opened(StorageSettings(), tmp_path) as database:
        await add_pair(database, "before")
        for _ in range(4):  # each reader has a connection of its own
            async with database.transaction(is_read_only=True) as transaction:
                await transaction.execute("SELECT 1")
        log = tmp_path / "gpuproxy.db-wal"
        written_to = log.stat().st_ino
        assert await asyncio.to_thread(copy, "first.db") == 2
        assert log.stat().st_ino == written_to
        await add_pair(database, "after")
        assert await asyncio.to_thread(copy, "second.db") == 4


async def test_a_crash_of_postgres_leaves_what_was_acknowledged(
    own_server: PostgresServer, tmp_path: Path
) -> None:
    acknowledged: list[str] = []
    is_enough = asyncio.Event()
    async with opened(own_server.settings("own"), tmp_path) as database:

        async def caller(number: int) -> None:
            for count in itertools.count():
                try:
                    await add_pair(database, f"{number}-{count}")
                except StoreUnavailable:
                    return
                acknowledged.append(f"{number}-{count}")
                if len(acknowledged) == 200:
                    is_enough.set()

        callers = [asyncio.create_task(caller(number)) for number in range(CALLERS)]
        await is_enough.wait()
        own_server.stop()
        await asyncio.gather(*callers)
        own_server.start()
        await until(lambda: database.is_up)
        await check(database, acknowledged)


if __name__ == "__main__":
    asyncio.run(write_without_end(Path(sys.argv[1])))
