"""PostgreSQL: a pool of connections, and one more that listens for notifications.

What goes wrong, and what it means (`_failure`):
1. 40001, 40P01 (serialisation, deadlock), 55P03 (a lock)    → TransactionConflict
2. class 23 (constraints), P0001 (our triggers)              → ConstraintViolated
3. 57014 (statement_timeout), a time-out of ours, 53 (full),
   25006 (read-only), 42501 (no right)                       → StoreUnavailable for this statement alone
4. 28 (password), 3D000 (no such database)                   → StoreRefused when it is tried, else as 5
5. 08, 57P, 58, F0, a connection that broke                  → StoreUnavailable, and it is down
6. anything else                                             → a fault of ours, as it is
"""

import asyncio
import random
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import asyncpg
from pydantic import SecretStr
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

from appliance.base.clock import Clock
from appliance.base.errors import describe_os_error
from appliance.base.logs import get_logger
from appliance.base.tasks import Tasks
from appliance.storage.database import (
    ConstraintViolated,
    Database,
    Parameters,
    Rows,
    Statement,
    StoreRefused,
    StoreUnavailable,
    Transaction,
    TransactionConflict,
    compiled,
)
from appliance.storage.postgres_pool import PooledConnection, PoolRules, PostgresPool

log = get_logger("storage")
FAILURES = (SQLAlchemyError, TimeoutError, OSError, asyncpg.PostgresError, asyncpg.InterfaceError)
OLDEST_VERSION = 15
IDLE_IN_TRANSACTION_S = 60
ANSWER_MARGIN_S = 2.0  # the server ends a statement first; this bounds a server that does not answer at all
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.2, 5.0
CONFLICTS = {"40001", "40P01", "55P03"}
RULES_BROKEN = ("23", "P0001")
SLOW, DUPLICATE = "57014", "23505"
BUSY = ("53", "25006", "42501")
DOWN = ("08", "57P", "58", "F0")
REFUSED = ("28", "3D000")


@dataclass(frozen=True, slots=True)
class PostgresAddress:
    """Where the database is, and how it is reached.

    Attributes:
        host: Or the folder of its socket.
        ssl_mode: As libpq's sslmode.
        authority: The file of the authority for verify-ca and verify-full; None = the machine's.
        has_session: A connection of ours is one of the server's: False behind PgBouncer's transaction mode.
        has_prepared: Prepared statements have names: False behind PgBouncer.
    """

    host: str
    port: int
    user: str
    password: SecretStr
    name: str
    ssl_mode: str = "prefer"
    authority: Path | None = None
    has_session: bool = True
    has_prepared: bool = True

    def __str__(self) -> str:
        return f"postgres://{self.user}@{self.host}:{self.port}/{self.name}"


class PostgresTransaction(Transaction):
    """A transaction in one connection."""

    kind = "postgres"

    def __init__(self, one: PooledConnection, database: Database) -> None:
        self._one = one
        self._database = database

    async def execute(self, statement: Statement, parameters: Parameters | None = None) -> Rows:
        """Run a statement; see Transaction."""
        self._database.statements += 1
        clause = compiled(statement) if isinstance(statement, str) else statement
        return Rows(await self._one.connection.execute(clause, parameters))


class PostgresDatabase(Database):
    """One database of a PostgreSQL server.

    Args:
        address: Where it is.
        rules: Of the pool.
        connect_timeout_s: Longest wait for a connection.
        statement_timeout_s: Longest time of a statement.
        check: Called in a first transaction whenever it came up; StoreRefused = the schema does not fit.
        tasks: What runs in the background.
        clock: The time.
        on_change: Called with True and False when it comes up or goes down.
    """

    kind: ClassVar[Literal["sqlite", "postgres"]] = "postgres"

    def __init__(
        self,
        address: PostgresAddress,
        rules: PoolRules,
        *,
        connect_timeout_s: float,
        statement_timeout_s: float,
        check: Callable[[Transaction], Awaitable[None]] | None,
        tasks: Tasks,
        clock: Clock,
        on_change: Callable[[bool], None] | None = None,
    ) -> None:
        super().__init__(tasks, on_change)
        self.address = address
        self.can_listen = address.has_session
        self._rules = rules
        self._connect_timeout_s, self._statement_timeout_s = connect_timeout_s, statement_timeout_s
        self._check, self._clock = check, clock
        self._open_raw = partial(
            open_raw, address, connect_timeout_s=connect_timeout_s, statement_timeout_s=statement_timeout_s
        )
        self._engine = build_engine(
            address, connect_timeout_s=connect_timeout_s, statement_timeout_s=statement_timeout_s
        )
        self._pool = PostgresPool(self._connect, _ping, rules, clock)
        self._is_tidying = False

    @property
    def open_count(self) -> int:
        """Connections of the pool that are open."""
        return self._pool.open_count

    @property
    def idle_count(self) -> int:
        """Those of them that are not in use."""
        return self._pool.idle_count

    @property
    def connections(self) -> tuple[int, int] | None:
        """Open connections, and idle ones; see Database."""
        return self._pool.open_count, self._pool.idle_count

    async def _connect(self) -> PooledConnection:
        connection = await self._engine.connect()
        pooled = await connection.get_raw_connection()
        await connection.rollback()
        now_s = self._clock.monotonic_s()
        return PooledConnection(connection, pooled.driver_connection, pooled.dbapi_connection, now_s, now_s)

    def transaction(self, *, is_read_only: bool = False) -> AbstractAsyncContextManager[Transaction]:
        """Return a transaction; see Database."""
        return self._transaction(is_read_only)

    @asynccontextmanager
    async def _transaction(self, is_read_only: bool, *, is_try: bool = False) -> AsyncIterator[Transaction]:
        if not is_try:
            self._refuse_if_down()
        one = await self._take(is_try)
        is_broken = True
        one.adapted.readonly = is_read_only  # of the BEGIN that the first statement sends
        try:
            yield PostgresTransaction(one, self)
            await one.connection.commit()
            is_broken = False
        except FAILURES as exc:
            failure = self._failure(exc, one.raw, is_try=is_try)
            is_usable = isinstance(failure, TransactionConflict | ConstraintViolated) or failure is exc
            is_broken = not (is_usable and await _rolled_back(one))
            raise failure from (None if failure is exc else exc)
        except Exception:
            is_broken = not await _rolled_back(one)
            raise
        finally:  # a cancelled one is dropped: what its server is doing is not known
            await self._pool.give_back(one, is_broken=is_broken)

    async def _take(self, is_try: bool) -> PooledConnection:
        limit = f"{self._connect_timeout_s:g} s (DB_CONNECT_TIMEOUT)"
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                return await self._pool.take()
        except TimeoutError:
            if self._pool.open_count - self._pool.idle_count >= self._rules.most:
                raise StoreUnavailable(
                    f"all {self._rules.most} connections (DB_MAX_CONNS) are in use for longer than {limit}"
                ) from None
            reason = f"{self.address} does not answer within {limit}"
            self._note_down(reason)
            raise StoreUnavailable(reason) from None
        except (*FAILURES, ValueError) as exc:
            raise self._failure(exc, is_try=is_try) from None

    def _failure(self, exc: Exception, raw: Any = None, *, is_try: bool = False) -> Exception:
        """Say what an error of the database means; see the module's list.

        Args:
            exc: The error.
            raw: asyncpg's connection; None = there is none yet.
            is_try: The database is tried, not used.
        """
        cause = _cause(exc)
        state = str(getattr(cause, "sqlstate", None) or "")
        words = _words(cause)
        reason = f"{self.address}: {words}"
        if state in CONFLICTS:  # 1
            return TransactionConflict(f"other transactions were in the way ({words})")
        if state.startswith(RULES_BROKEN):  # 2
            name = getattr(cause, "constraint_name", None) or ""
            return ConstraintViolated(words, name=name, is_duplicate=state == DUPLICATE)
        if state == SLOW or isinstance(cause, TimeoutError):  # 3
            limit = f"{self._statement_timeout_s:g} s (DB_STATEMENT_TIMEOUT)"
            return StoreUnavailable(f"a statement took longer than {limit}")
        if state.startswith(BUSY):
            return StoreUnavailable(reason)
        if is_try and state.startswith(REFUSED):  # 4
            return StoreRefused(f"{self.address}: {describe_failure(exc)}")
        is_lost = isinstance(cause, OSError) or raw is None or raw.is_closed()
        if is_lost or state.startswith(DOWN):  # 5
            self._note_down(reason)
            return StoreUnavailable(reason)
        return exc  # 6

    async def _try(self) -> None:
        """Use it once; see Database."""
        await self._pool.drop_idle()
        async with self._transaction(True, is_try=True) as transaction:
            version = int((await transaction.execute("SHOW server_version_num"))[0][0]) // 10_000
            if version < OLDEST_VERSION:
                raise StoreRefused(
                    f"{self.address} is PostgreSQL {version}; {OLDEST_VERSION} or newer is needed. Upgrade it"
                )
            if self._check is not None:
                await self._check(transaction)
        if not self._is_tidying:
            self._is_tidying = True
            self._tasks.every(self._rules.check_s, self._pool.tidy, name="store_pool")

    async def listen(self, channel: str, callback: Callable[[str | None], None]) -> None:
        """Listen in a connection of its own, which is opened again when it breaks; see Database."""
        if self.can_listen:
            self._tasks.start(self._listen(channel, callback), name=f"store_listen_{channel}")

    async def _listen(self, channel: str, callback: Callable[[str | None], None]) -> None:
        pause_s = FIRST_PAUSE_S
        while not self._is_closed:
            try:
                connection = await self._open_raw()
            except FAILURES as exc:
                log.debug("store_listener_waits", reason=_words(exc), pause_s=pause_s)
                await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))
                pause_s = min(pause_s * 2, LONGEST_PAUSE_S)
                continue
            try:
                await self._hear(connection, channel, callback)
                pause_s = FIRST_PAUSE_S
            except FAILURES as exc:
                log.warning("store_listener_lost", reason=_words(exc))
                await asyncio.sleep(pause_s)
            finally:
                connection.terminate()

    async def _hear(self, connection: Any, channel: str, callback: Callable[[str | None], None]) -> None:
        """Hand over notifications until the connection breaks; it is tried now and then."""
        ended = asyncio.Event()
        connection.add_termination_listener(lambda _: ended.set())
        await connection.add_listener(channel, lambda _c, _p, _n, payload: callback(payload))
        callback(None)
        while not ended.is_set():
            try:
                async with asyncio.timeout(self._rules.check_s):
                    await ended.wait()
            except TimeoutError:
                await connection.execute("SELECT 1")
        log.warning("store_listener_lost", reason="the server closed the connection")

    async def close(self) -> None:
        """Close all connections; see Database."""
        self._is_closed = True
        await self._pool.close()
        await self._engine.dispose()


async def open_raw(
    address: PostgresAddress, *_: Any, connect_timeout_s: float, statement_timeout_s: float | None, **__: Any
) -> Any:
    """Open a connection of asyncpg. The password is an argument of its own: no text contains it.

    Args:
        address: Where.
        connect_timeout_s: Longest wait for it.
        statement_timeout_s: Longest time of a statement; None = no limit.
    """
    session = {
        "statement_timeout": str(int((statement_timeout_s or 0) * 1000)),
        "idle_in_transaction_session_timeout": str(IDLE_IN_TRANSACTION_S * 1000),
    }
    connection = await asyncpg.connect(
        host=address.host,
        port=address.port,
        user=address.user,
        password=address.password.get_secret_value() or None,
        database=address.name,
        ssl=_tls(address),
        timeout=connect_timeout_s,
        command_timeout=None if statement_timeout_s is None else statement_timeout_s + ANSWER_MARGIN_S,
        statement_cache_size=100 if address.has_prepared else 0,
        server_settings={"application_name": "appliance"} | (session if address.has_prepared else {}),
    )
    if address.has_session and not address.has_prepared:  # PgBouncer takes no settings when one connects
        try:
            await connection.execute("; ".join(f"SET {name} = {value}" for name, value in session.items()))
        except BaseException:
            connection.terminate()
            raise
    return connection


def build_engine(
    address: PostgresAddress, *, connect_timeout_s: float, statement_timeout_s: float | None
) -> AsyncEngine:
    """Build SQLAlchemy's engine, which keeps no connection; see open_raw."""
    creator = partial(
        open_raw, address, connect_timeout_s=connect_timeout_s, statement_timeout_s=statement_timeout_s
    )
    options: dict[str, Any] = {"async_creator_fn": creator}
    if not address.has_prepared:  # "" = the unnamed statement, which lives as long as its use
        options |= {"prepared_statement_cache_size": 0, "prepared_statement_name_func": lambda: ""}
    return create_async_engine("postgresql+asyncpg://", poolclass=NullPool, connect_args=options)


def describe_failure(exc: Exception) -> str:
    """Say what was wrong and, where it is known, what to do: one line, without values and secrets."""
    cause = _cause(exc)
    state = str(getattr(cause, "sqlstate", None) or "")
    return f"{_words(cause)}. {_remedy(state)}" if state.startswith((*REFUSED, "42501")) else _words(cause)


async def _ping(one: PooledConnection) -> None:
    await one.raw.execute("SELECT 1", timeout=2)


async def _rolled_back(one: PooledConnection) -> bool:
    try:
        await one.connection.rollback()
    except Exception:
        return False
    return not one.raw.is_closed()


def _cause(exc: BaseException) -> BaseException:
    """Return asyncpg's error below SQLAlchemy's."""
    while type(exc).__module__.startswith("sqlalchemy.") and exc.__cause__ is not None:
        exc = exc.__cause__
    return exc


def _words(exc: BaseException) -> str:
    """Return an error's text, in one line, without values: PostgreSQL's DETAIL is left out."""
    if isinstance(exc, OSError):
        return describe_os_error(exc)
    if isinstance(exc, TimeoutError):
        return "it does not answer"
    text = str(getattr(exc, "message", None) or exc).strip()
    return text.splitlines()[0][:300] if text else type(exc).__name__


def _remedy(state: str) -> str:
    if state.startswith("28"):
        return "Check DB_USER and DB_PASSWORD, and the server's pg_hba.conf"
    if state == "3D000":
        return "Create the database (createdb), or check DB_NAME"
    return "Give the user of DB_USER the right to do this"


def _tls(address: PostgresAddress) -> Any:
    """Return what asyncpg takes as `ssl`.

    1. a socket of this machine             → none
    2. no certificate is checked            → the mode's name, which asyncpg knows
    3. verify-ca, verify-full               → a context that checks it, verify-full also the host's name
    """
    if address.host.startswith("/"):  # 1
        return False
    if not address.ssl_mode.startswith("verify-"):  # 2
        return address.ssl_mode
    context = ssl.create_default_context(cafile=str(address.authority) if address.authority else None)  # 3
    context.check_hostname = address.ssl_mode == "verify-full"
    return context
