"""A real PgBouncer before PostgreSQL, in both of its modes that work."""

import asyncio
import shutil
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from appliance.storage.database import Database
from appliance.storage.settings import StorageSettings
from tests.storage.test_away import add, ids
from tests.storage.test_redis_store import until
from tests.storage_servers import USER, PostgresServer, cannot, opened, plain_user, postgres_name

INI = """
[databases]
* = host={server} port=5432 user={user}
[pgbouncer]
listen_addr =
listen_port = 6432
unix_socket_dir = {folder}
auth_type = any
pool_mode = {mode}
default_pool_size = 2
logfile = {folder}/log
"""


@contextmanager
def pgbouncer(server: PostgresServer, mode: str) -> Iterator[Path]:
    """Run one; yield the folder of its socket."""
    program = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")
    if program is None:
        cannot("PgBouncer is not installed: tests/tools/setup-machine database")
    folder = Path(tempfile.mkdtemp(prefix="pb-"))
    (folder / "ini").write_text(INI.format(server=server.folder, user=USER, folder=folder, mode=mode))
    user = plain_user()
    if user is not None:
        shutil.chown(folder, user)
        shutil.chown(folder / "ini", user)
    process = subprocess.Popen(
        [program, "-q", str(folder / "ini")],
        user=user,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        end = time.monotonic() + 10
        while not (folder / ".s.PGSQL.6432").exists():
            assert process.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < end
            time.sleep(0.02)
        yield folder
    finally:
        process.kill()
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(params=["transaction", "session"])
async def pooled(
    request: pytest.FixtureRequest, postgres_server: PostgresServer, tmp_path: Path
) -> AsyncIterator[tuple[str, Database]]:
    async with postgres_name(postgres_server) as name:
        with pgbouncer(postgres_server, request.param) as folder:
            settings = StorageSettings(
                db_host=str(folder),
                db_port=6432,
                db_user=USER,
                db_name=name,
                db_use_pgbouncer=True,
                db_pgbouncer_pool_mode=request.param,
                db_max_conns=2 if request.param == "session" else 8,
            )
            async with opened(settings, tmp_path) as database:
                yield request.param, database


async def test_connections_that_are_shared_do_not_mix_statements(pooled: tuple[str, Database]) -> None:
    mode, database = pooled
    for _ in range(3):
        await asyncio.gather(*(add(database, str(number)) for number in range(20)))
    assert len(await ids(database)) == 60
    assert database.is_up
    assert database.can_listen is (mode == "session")


async def test_notifications_are_heard_where_a_session_is_one(pooled: tuple[str, Database]) -> None:
    mode, database = pooled
    heard: list[str | None] = []
    await database.listen("appliance", heard.append)
    if mode == "transaction":
        await asyncio.sleep(0.2)
        assert heard == []
        return
    await until(lambda: heard == [None])
    async with database.transaction() as transaction:
        await transaction.execute("SELECT pg_notify('appliance', '7')")
    await until(lambda: heard == [None, "7"])
