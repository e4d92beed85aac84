"""A real PostgreSQL of this machine, on a socket in a folder of its own, and databases for tests.

`database` is an opened, empty database with all tables, once SQLite and once PostgreSQL. Where PostgreSQL cannot be
had, its tests are skipped with the reason; with CI set they fail.
"""

import asyncio
import io
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NoReturn

import pytest

from appliance.base.clock import SystemClock
from appliance.base.tasks import Tasks
from appliance.storage.database import Database
from appliance.storage.migrate import migrate, migrate_sqlite
from appliance.storage.open import build_database
from appliance.storage.settings import StorageSettings

OLDEST = 15
USER = "app"
TEMPLATE = "ready"  # a database with all tables
QUICK = "-c fsync=off -c synchronous_commit=off -c full_page_writes=off"


def cannot(reason: str) -> NoReturn:
    """Skip the test; with CI set, fail."""
    if os.environ.get("CI"):
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


def _programs() -> Path | None:
    """Return the folder of PostgreSQL's newest programs that are new enough."""
    found = [
        folder / "bin"
        for folder in Path("/usr/lib/postgresql").glob("*")
        if folder.name.isdigit() and int(folder.name) >= OLDEST and (folder / "bin/initdb").exists()
    ]
    if found:
        return max(found, key=lambda folder: int(folder.parent.name))
    path = shutil.which("initdb")
    return Path(path).resolve().parent if path else None


def plain_user() -> str | None:
    """Return whom servers that refuse root run as; None = this process's own user."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name).pw_name
        except KeyError:
            continue
    cannot("PostgreSQL refuses to run as root, and there is no user postgres or nobody")


class PostgresServer:
    """One server; the tests' user is its administrator.

    Takes   folder: for its files, short, since a socket's path has 107 characters at most; options: of the server
    """

    def __init__(self, folder: Path, options: str = QUICK) -> None:
        programs = _programs()
        if programs is None:
            cannot("PostgreSQL 15 or newer is not installed: tests/tools/setup-machine database")
        self.folder, self._programs, self.options = folder, programs, options
        self._user = plain_user()
        self._process: subprocess.Popen[bytes] | None = None
        self.port = 5432
        if self._user is not None:
            shutil.chown(folder, self._user)
        self._run(
            "initdb",
            "-D",
            str(folder / "data"),
            "-U",
            USER,
            "-A",
            "trust",
            "--no-sync",
            "-E",
            "UTF8",
            "--locale=C.UTF-8",
        )

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [str(self._programs / program), *arguments],
            user=self._user,
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )
        if done.returncode:
            pytest.fail(f"{program}: {done.stdout[-1000:]}{done.stderr[-1000:]}", pytrace=False)

    @property
    def log(self) -> str:
        """What it logged."""
        return (self.folder / "log").read_text(errors="replace")

    def start(self) -> None:
        """Start it, and wait until it answers."""
        with open(self.folder / "log", "ab") as log:
            self._process = subprocess.Popen(
                [
                    str(self._programs / "postgres"),
                    "-D",
                    str(self.folder / "data"),
                    "-k",
                    str(self.folder),
                    "-c",
                    "listen_addresses=",
                    *self.options.split(),
                ],
                user=self._user,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        end = time.monotonic() + 20
        while self._ready() != 0:
            if self._process.poll() is not None or time.monotonic() > end:
                pytest.fail(f"PostgreSQL did not come up: {self.log[-1000:]}", pytrace=False)
            time.sleep(0.02)

    def _ready(self) -> int:
        command = [
            str(self._programs / "pg_isready"),
            "-q",
            "-h",
            str(self.folder),
            "-p",
            str(self.port),
            "-d",
            "postgres",
            "-U",
            USER,
        ]
        return subprocess.run(command, timeout=10).returncode

    def stop(self, how: signal.Signals = signal.SIGQUIT) -> None:
        """Stop it. SIGQUIT: at once, as after a crash; SIGINT: connections are closed."""
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(20)
            self._process = None

    def settings(self, name: str = "postgres", **more: Any) -> StorageSettings:
        """Return settings with which a database of it is reached."""
        return StorageSettings(db_host=str(self.folder), db_user=USER, db_name=name, **more)

    def environ(self, name: str = "postgres") -> dict[str, str]:
        """Return the variables with which a database of it is reached."""
        return {"DB_HOST": str(self.folder), "DB_USER": USER, "DB_NAME": name}

    async def sql(self, statement: str, name: str = "postgres") -> list[Any]:
        """Run a statement outside any transaction."""
        import asyncpg

        connection = await asyncpg.connect(host=str(self.folder), user=USER, database=name, timeout=10)
        try:
            return list(await connection.fetch(statement))
        finally:
            await connection.close()


async def make_template(server: PostgresServer) -> None:
    """Make the database from which those of tests are copied."""
    await server.sql(f"CREATE DATABASE {TEMPLATE}")
    await asyncio.to_thread(migrate, server.settings(TEMPLATE), server.folder, output=io.StringIO())


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """One server for all tests of this process; a test that stops it starts it again."""
    folder = Path(tempfile.mkdtemp(prefix="pg-"))
    try:
        server = PostgresServer(folder)
        server.start()
        try:
            asyncio.run(make_template(server))
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


_sqlite_folder = tempfile.TemporaryDirectory(prefix="sqlite-")  # it removes itself at the end
_sqlite_template = Path(_sqlite_folder.name) / "ready.db"
_numbers = iter(range(1, 1_000_000))


@asynccontextmanager
async def postgres_name(server: PostgresServer) -> AsyncIterator[str]:
    """Yield the name of a new database with all tables."""
    name = f"test_{os.getpid()}_{next(_numbers)}"
    await server.sql(f"CREATE DATABASE {name} TEMPLATE {TEMPLATE}")
    try:
        yield name
    finally:
        await server.sql(f"DROP DATABASE {name} WITH (FORCE)")


def make_sqlite(path: Path) -> None:
    """Make SQLite's file, with all tables."""
    if not _sqlite_template.exists():
        migrate_sqlite(_sqlite_template, output=io.StringIO())
    shutil.copy(_sqlite_template, path)


@asynccontextmanager
async def opened(settings: StorageSettings, state_dir: Path) -> AsyncIterator[Database]:
    """Open a database; close it at the end."""
    async with Tasks() as tasks:
        one = build_database(settings, state_dir, tasks=tasks, clock=SystemClock())
        try:
            await one.open()
            yield one
        finally:
            await one.close()


@pytest.fixture
async def sqlite_database(tmp_path: Path) -> AsyncIterator[Database]:
    """SQLite, opened, with all tables, empty."""
    make_sqlite(tmp_path / "gpuproxy.db")
    async with opened(StorageSettings(), tmp_path) as one:
        yield one


@pytest.fixture
async def postgres_database(postgres_server: PostgresServer, tmp_path: Path) -> AsyncIterator[Database]:
    """PostgreSQL, opened, with all tables, empty."""
    async with (
        postgres_name(postgres_server) as name,
        opened(postgres_server.settings(name), tmp_path) as one,
    ):
        yield one


@pytest.fixture(params=["sqlite", "postgres"])
def database(request: pytest.FixtureRequest) -> Database:
    """Both, one after the other."""
    return request.getfixturevalue(f"{request.param}_database")  # type: ignore[no-any-return]
