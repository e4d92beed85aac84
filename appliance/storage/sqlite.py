"""SQLite: one connection that writes, in a thread of its own, and some that read.

Transactions that write take turns. While others wait, a finished one is not committed yet: it becomes a
savepoint, and one COMMIT (one fsync) keeps all of them; each caller goes on when that has happened. Without
others a transaction is committed at once, so there is no timer.

What goes wrong, and what it means (`_failure`):
1. SQLITE_BUSY, SQLITE_LOCKED: another program holds the file       → TransactionConflict
2. a constraint, RAISE(ABORT) of a trigger                          → ConstraintViolated
3. it was interrupted, since it took too long                       → StoreUnavailable for this statement
4. the disk is full, read-only, broken; the file cannot be opened   → StoreUnavailable, and it is down
5. anything else                                                    → a fault of ours, as it is
"""

import asyncio
import fcntl
import os
import sqlite3
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

from sqlalchemy import create_engine
from sqlalchemy.engine import Connection, CursorResult, Engine
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from appliance.base.errors import write_remedy
from appliance.base.logs import get_logger
from appliance.base.tasks import Tasks
from appliance.storage.database import (
    CLOSED,
    ConstraintViolated,
    Database,
    Parameters,
    Rows,
    Statement,
    StoreHeld,
    StoreUnavailable,
    Transaction,
    TransactionConflict,
)

log = get_logger("storage")
LOCK_NAME = "store.lock"
MODE = 0o600
BUSY_S = 2.0  # longest wait for another program that holds the file
MOST_TOGETHER = 64  # transactions that one COMMIT keeps
TRANSACTION_S = 30.0  # a transaction that is open for longer is undone: all others wait for it
TOO_LONG = f"a transaction took longer than {TRANSACTION_S:g} s"
MAX_WAITING = 10_000
READERS = 2
BUSY = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}
DUPLICATES = {sqlite3.SQLITE_CONSTRAINT_UNIQUE, sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY}
DOWN = {
    sqlite3.SQLITE_FULL: "its disk is full; free some space",
    sqlite3.SQLITE_READONLY: "its file, or its folder, is read-only; make both writable",
    sqlite3.SQLITE_IOERR: "its disk does not work, or its file system has no locks; see the kernel's log",
    sqlite3.SQLITE_CANTOPEN: "its file cannot be opened; check that its folder exists and is writable",
    sqlite3.SQLITE_CORRUPT: "its file is damaged; restore a copy",
    sqlite3.SQLITE_NOTADB: "its file is no database; move it away, or restore a copy",
    sqlite3.SQLITE_PERM: "its file may not be used; check its owner and mode",
    sqlite3.SQLITE_NOLFS: "its file is larger than its file system allows",
}
ResultT = TypeVar("ResultT")


class _Turn:
    """A transaction that waits for its turn to write, has it, or waits to be kept.

    Attributes:
        granted: It can run statements.
        ended: True = to be kept, False = to be undone.
        kept: Done when it is on the disk, or failed.
    """

    __slots__ = ("ended", "granted", "is_over", "kept")

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.granted: asyncio.Future[None] = loop.create_future()
        self.ended: asyncio.Future[bool] = loop.create_future()
        self.kept: asyncio.Future[None] = loop.create_future()
        self.is_over = False  # it took too long

    def end(self, is_kept: bool) -> None:
        if not self.ended.done():
            self.ended.set_result(is_kept)


class _Thread:
    """One connection, and the thread in which it is used."""

    def __init__(self, engine: Engine, name: str, *, is_read_only: bool = False) -> None:
        self._engine, self._is_read_only = engine, is_read_only
        self._executor = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._connection: Connection | None = None
        self.raw: sqlite3.Connection | None = None

    async def call(
        self, function: Callable[[Connection], ResultT], timeout_s: float | None = None
    ) -> ResultT:
        """Use the connection; it is opened where it is not. A caller that leaves does not end what runs.

        Args:
            function: Called in the thread.
            timeout_s: When the statement is interrupted.
        """
        loop = asyncio.get_running_loop()
        try:
            work = self._executor.submit(self._use, function)
        except RuntimeError:  # its thread has ended
            raise StoreUnavailable(CLOSED) from None
        if timeout_s is not None:
            alarm = loop.call_later(timeout_s, self._interrupt)
            work.add_done_callback(lambda _: loop.call_soon_threadsafe(alarm.cancel))
        # Shielded: a statement that waits for the thread is not taken back, for it may be the one that ends
        # a transaction.
        return await asyncio.shield(asyncio.wrap_future(work))

    def _use(self, function: Callable[[Connection], ResultT]) -> ResultT:
        if self._connection is None:
            self._connection = self._engine.connect()
            self.raw = self._connection.connection.driver_connection
            if self._is_read_only:
                self._connection.exec_driver_sql("PRAGMA query_only=ON")
        return function(self._connection)

    def _interrupt(self) -> None:
        if self.raw is not None:
            self.raw.interrupt()

    async def reset(self) -> None:
        """Close the connection; the next use opens another one."""
        await asyncio.get_running_loop().run_in_executor(self._executor, self._forget)

    async def close(self) -> None:
        """Close the connection and end the thread."""
        await self.reset()
        self._executor.shutdown(wait=False)

    def _forget(self) -> None:
        connection, self._connection, self.raw = self._connection, None, None
        if connection is not None:
            try:
                connection.close()
            except SQLAlchemyError:
                connection.invalidate()


class SqliteTransaction(Transaction):
    """A transaction in one thread's connection."""

    kind = "sqlite"

    def __init__(self, thread: _Thread, timeout_s: float, turn: _Turn | None, database: Database) -> None:
        self._thread, self._timeout_s, self._turn = thread, timeout_s, turn
        self._database = database

    async def execute(self, statement: Statement, parameters: Parameters | None = None) -> Rows:
        """Run a statement; see Transaction."""
        if self._turn is not None and self._turn.is_over:
            raise StoreUnavailable(TOO_LONG)
        self._database.statements += 1
        return await self._thread.call(
            lambda connection: Rows(_run(connection, statement, parameters)), self._timeout_s
        )


def _run(connection: Connection, statement: Statement, parameters: Parameters | None) -> CursorResult[Any]:
    """Run a statement; a text goes to SQLite as it is, which knows parameters by name itself."""
    if isinstance(statement, str):
        return connection.exec_driver_sql(statement, parameters)
    return connection.execute(statement, parameters)


class SqliteDatabase(Database):
    """One file. Its folder's `store.lock` is held: one process at a time uses it.

    Args:
        path: The file; its folder is made where it is missing.
        statement_timeout_s: Longest time of a statement.
        migrate: Called with the file before it is used first.
        check: Called in a first transaction whenever it came up; StoreRefused = the schema does not fit.
        tasks: What runs in the background.
        on_change: Called with True and False when it comes up or goes down.
    """

    kind: ClassVar[Literal["sqlite", "postgres"]] = "sqlite"

    def __init__(
        self,
        path: Path,
        *,
        statement_timeout_s: float,
        tasks: Tasks,
        migrate: Callable[[Path], Awaitable[None]] | None = None,
        check: Callable[[Transaction], Awaitable[None]] | None = None,
        on_change: Callable[[bool], None] | None = None,
    ) -> None:
        super().__init__(tasks, on_change)
        self.path = path
        self._statement_timeout_s = statement_timeout_s
        self._migrate, self._check = migrate, check
        self._engine = create_engine("sqlite://", creator=self._connect, poolclass=NullPool)
        self._writer = _Thread(self._engine, "store-writer")
        self._readers = [
            _Thread(self._engine, f"store-reader-{number}", is_read_only=True) for number in range(READERS)
        ]
        self._free_readers: deque[_Thread] = deque(self._readers)
        self._reader_turns = asyncio.Semaphore(READERS)
        self._waiting: asyncio.Queue[_Turn] = asyncio.Queue(MAX_WAITING)
        self._writing: asyncio.Task[None] | None = None
        self._lock: int | None = None

    # ---- opening

    def _connect(self) -> sqlite3.Connection:
        # SQLite's own files get the mode of this one. A file that is there is not opened: closing it would
        # drop the locks that this process has on it (fcntl), and another program, such as sqlite3 that copies
        # the file, would take itself for the last one and delete the log that we write to.
        try:
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, MODE))
        except OSError:  # it is there, or SQLite says why not
            pass
        connection = sqlite3.connect(
            self.path, timeout=BUSY_S, isolation_level=None, check_same_thread=False, cached_statements=256
        )
        try:
            for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "trusted_schema=OFF"):
                connection.execute(f"PRAGMA {pragma}")
        except BaseException:
            connection.close()
            raise
        return connection

    async def _try(self) -> None:
        """Write once; see Database. A full disk is found only by writing."""
        if self._lock is None:
            if self._migrate is not None:
                await self._migrate(self.path)
            self._lock = await asyncio.to_thread(lock_store, self.path)
        try:
            await self._writer.call(_write_once, self._statement_timeout_s)
        except SQLAlchemyError as exc:
            await self._writer.reset()
            raise self._as_unavailable(exc) from None
        if self._check is not None:
            async with self._reading() as transaction:
                await self._check(transaction)
        if self._writing is None:
            self._writing = self._tasks.start(self._write(), name="store_writer")

    # ---- transactions

    def transaction(self, *, is_read_only: bool = False) -> AbstractAsyncContextManager[Transaction]:
        """Return a transaction; see Database."""
        return self._reading() if is_read_only else self._taking_turns()

    @asynccontextmanager
    async def _reading(self) -> AsyncIterator[Transaction]:
        if self._is_closed:
            self._refuse_if_down()
        async with self._reader_turns:
            thread = self._free_readers.popleft()
            try:
                await thread.call(partial(_sql, statements=["BEGIN"]))
                yield SqliteTransaction(thread, self._statement_timeout_s, None, self)
            except SQLAlchemyError as exc:
                raise self._failure(exc, is_reading=True) from exc
            finally:
                try:
                    if not self._is_closed:  # a failure here would take the place of a cancellation
                        await thread.call(_undo)
                finally:
                    self._free_readers.append(thread)

    @asynccontextmanager
    async def _taking_turns(self) -> AsyncIterator[Transaction]:
        self._refuse_if_down()
        turn = _Turn()
        try:
            self._waiting.put_nowait(turn)
        except asyncio.QueueFull:
            raise StoreUnavailable(f"{MAX_WAITING} transactions wait already") from None
        try:
            await turn.granted
            yield SqliteTransaction(self._writer, self._statement_timeout_s, turn, self)
        except SQLAlchemyError as exc:
            turn.end(False)
            raise self._failure(exc) from exc
        except BaseException:
            turn.end(False)
            raise
        turn.end(True)
        await asyncio.shield(turn.kept)

    async def _write(self) -> None:
        """Commit what waits, group by group."""
        while True:
            group = [await self._waiting.get()]
            try:
                await self._write_group(group)
            except Exception as exc:
                await self._give_up(group, exc)
            except BaseException:
                for turn in group:
                    _fail(turn, StoreUnavailable(CLOSED))
                raise

    async def _write_group(self, group: list[_Turn]) -> None:
        """Give turns, one transaction at a time; commit when no other one waits.

        Args:
            group: The first one; those that wait meanwhile are added.
        """
        owed = ["BEGIN IMMEDIATE"]  # sent with what follows: each call costs a turn of two threads
        kept: list[_Turn] = []
        for turn in group:  # which grows
            if turn.granted.done():  # its caller left
                continue
            await self._writer.call(partial(_sql, statements=[*owed, "SAVEPOINT one"]))
            if await self._is_to_be_kept(turn):
                kept.append(turn)
                owed = ["RELEASE one"]
            else:
                owed = ["ROLLBACK TO one", "RELEASE one"]
                _fail(turn, StoreUnavailable(TOO_LONG))
            if len(kept) < MOST_TOGETHER and not self._waiting.empty():
                group.append(self._waiting.get_nowait())
        await self._writer.call(partial(_sql, statements=[*owed, "COMMIT"]))
        for turn in kept:
            if not turn.kept.done():
                turn.kept.set_result(None)

    @staticmethod
    async def _is_to_be_kept(turn: _Turn) -> bool:
        """Let one transaction run; wait for its end, but not forever."""
        if turn.granted.done():
            return False
        turn.granted.set_result(None)
        try:
            async with asyncio.timeout(TRANSACTION_S):
                await asyncio.wait([turn.ended])
        except TimeoutError:
            turn.is_over = True
            turn.end(False)
        return turn.ended.result()

    async def _give_up(self, group: list[_Turn], exc: Exception) -> None:
        """Undo a group of transactions that could not be kept together; none of them was."""
        failure = self._failure(exc)
        if not isinstance(failure, StoreUnavailable):
            log.error("store_writer_failed", error=repr(exc))
            failure = StoreUnavailable("a transaction could not be committed")
        try:
            await self._writer.call(_undo)
        except Exception:
            log.exception("store_writer_failed")
        for turn in group:
            _fail(turn, failure)

    # ---- failures

    def _failure(self, exc: Exception, *, is_reading: bool = False) -> Exception:
        """Say what an error means; see the module's list.

        Args:
            exc: The error.
            is_reading: The transaction is not to write: it is our fault if it does.
        """
        cause = exc.orig if isinstance(exc, DBAPIError) else None
        if not isinstance(cause, sqlite3.Error):
            return exc
        code = getattr(cause, "sqlite_errorcode", 0)
        base = code & 0xFF
        if base in BUSY:  # 1
            return TransactionConflict(f"another program holds {self.path}")
        if base == sqlite3.SQLITE_CONSTRAINT:  # 2
            words = str(cause)
            return ConstraintViolated(words, name=words.rpartition(": ")[2], is_duplicate=code in DUPLICATES)
        if base == sqlite3.SQLITE_INTERRUPT:  # 3
            limit = f"{self._statement_timeout_s:g} s (DB_STATEMENT_TIMEOUT)"
            return StoreUnavailable(f"a statement took longer than {limit}")
        if base in DOWN and not (base == sqlite3.SQLITE_READONLY and is_reading):  # 4
            reason = f"{self.path}: {DOWN[base]}"
            self._note_down(reason)
            return StoreUnavailable(reason)
        return exc  # 5

    def _as_unavailable(self, exc: SQLAlchemyError) -> StoreUnavailable:
        failure = self._failure(exc)
        return failure if isinstance(failure, StoreUnavailable) else StoreUnavailable(f"{self.path}: {exc}")

    async def close(self) -> None:
        """Close all connections, and give the lock back; see Database."""
        if self._is_closed:
            return
        self._is_closed = True
        if self._writing is not None:
            self._writing.cancel()
            await asyncio.wait([self._writing])
        while not self._waiting.empty():
            _fail(self._waiting.get_nowait(), StoreUnavailable(CLOSED))
        for thread in (*self._readers, self._writer):
            await thread.close()
        self._engine.dispose()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def _fail(turn: _Turn, failure: BaseException) -> None:
    """Tell a transaction that it was not kept."""
    for future in (turn.granted, turn.kept):
        if not future.done():
            future.set_exception(failure)
            future.exception()  # it may have no reader


def _sql(connection: Connection, statements: list[str]) -> None:
    for statement in statements:
        connection.exec_driver_sql(statement)


def _undo(connection: Connection) -> None:
    raw: Any = connection.connection.driver_connection
    if raw.in_transaction:
        connection.exec_driver_sql("ROLLBACK")


def _write_once(connection: Connection) -> None:
    """Write a page that changes nothing."""
    number = connection.exec_driver_sql("PRAGMA user_version").scalar_one()
    connection.exec_driver_sql("BEGIN IMMEDIATE")
    try:
        connection.exec_driver_sql(f"PRAGMA user_version={number}")
        connection.exec_driver_sql("COMMIT")
    finally:
        _undo(connection)


def lock_store(path: Path) -> int:
    """Lock the folder of a database's file; return the descriptor that holds the lock (blocking).

    Args:
        path: The file.

    Raises:
        StoreHeld: Another process holds it.
        StoreUnavailable: The lock cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        name = path.with_name(LOCK_NAME)
        descriptor = os.open(name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, MODE)
    except OSError as exc:
        raise StoreUnavailable(
            f"{path.parent} cannot be written: {exc.strerror}. {write_remedy(exc)}"
        ) from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise StoreHeld(
            f"Another process uses the database {path}. SQLite is for one process: stop the other one, or "
            "use PostgreSQL (DB_TYPE=postgres) for several"
        ) from None
    except OSError as exc:
        log.warning("store_not_locked", folder=str(path.parent), reason=exc.strerror)
    return descriptor
