"""What a database promises, whichever it is: transactions, retries, bounded waits, whether it is up.

    async with database.transaction() as transaction:
        rows = await transaction.execute("SELECT id FROM users WHERE email = :email", {"email": email})

    await database.run(change)      # `change(transaction)` is run again after a conflict

While it is down every transaction is refused at once with StoreUnavailable, and a background task tries it;
nothing has to be started again.
"""

import asyncio
import random
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from functools import lru_cache
from typing import Any, ClassVar, Literal, TypeVar

from sqlalchemy import text
from sqlalchemy.engine import CursorResult, Row
from sqlalchemy.sql.expression import Executable

from appliance.base.errors import Unavailable
from appliance.base.logs import get_logger
from appliance.base.tasks import Tasks
from appliance.storage.probed import ProbedStore

log = get_logger("storage")
MAX_RUNS = 8
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.005, 0.5
RETRY_AFTER_S = 1.0
CLOSED = "it is closed, since the appliance stops"
Statement = str | Executable
Parameters = Mapping[str, Any] | Sequence[Mapping[str, Any]]
ResultT = TypeVar("ResultT")


class StoreUnavailable(Unavailable):
    """The database cannot be reached, is full, or does not answer in time.

    Args:
        reason: For the log and for operators: it names hosts, and no secret. Callers are not told.
    """

    default_code = "store_unavailable"

    def __init__(self, reason: str) -> None:
        super().__init__(
            "The database of accounts is not available. Try again shortly.", retry_after_s=RETRY_AFTER_S
        )
        self.reason = reason

    def __str__(self) -> str:
        return f"The database of accounts is not available: {self.reason}"


class TransactionConflict(StoreUnavailable):
    """Another transaction was in the way: nothing was changed, and the same may succeed now."""


class StoreRefused(Exception):
    """The database can be reached, and cannot be used: a wrong password, version or revision."""


class StoreHeld(StoreRefused):
    """Another process uses SQLite's file."""


class ConstraintViolated(Exception):
    """A row would break a rule of its table. Nothing was changed.

    Args:
        message: The database's own words, without values.
        name: Of the rule where the database says it, else "".
        is_duplicate: Another row has the same key.
    """

    def __init__(self, message: str, *, name: str = "", is_duplicate: bool = False) -> None:
        super().__init__(message)
        self.name = name
        self.is_duplicate = is_duplicate


class Rows(list[Row[Any]]):
    """The rows that a statement gave; columns are attributes: `rows[0].email`.

    Attributes:
        changed: How many rows it inserted, updated or deleted; -1 = the database does not say.
    """

    def __init__(self, result: CursorResult[Any]) -> None:
        super().__init__(result.all() if result.returns_rows else ())
        self.changed: int = result.rowcount


class Transaction(ABC):
    """Statements that are all kept or none."""

    kind: ClassVar[Literal["sqlite", "postgres"]]

    @abstractmethod
    async def execute(self, statement: Statement, parameters: Parameters | None = None) -> Rows:
        """Run a statement.

        Args:
            statement: SQL with `:name` parameters (write CAST(:name AS bigint[]), not `::`), or one built
                from `storage.schema`.
            parameters: Name → value; several = the statement is run with each, and gives no rows.

        Raises:
            ConstraintViolated: A row would break a rule.
            TransactionConflict: Another transaction was in the way.
            StoreUnavailable: The database failed.
        """


class Database(ProbedStore):
    """One database.

    Args:
        tasks: Run what tries it while it is down.
        on_change: Called with True and False when it comes up or goes down.

    Attributes:
        statements: How many were sent to it.
    """

    kind: ClassVar[Literal["sqlite", "postgres"]]
    can_listen: bool = False
    probe_name: ClassVar[str] = "store_probe"

    def __init__(self, tasks: Tasks, on_change: Callable[[bool], None] | None = None) -> None:
        self.statements = 0
        super().__init__(tasks, on_change)

    @property
    def connections(self) -> tuple[int, int] | None:
        """Open connections of the pool, and those of them that are not in use; None = there is no pool."""
        return None

    @abstractmethod
    def transaction(self, *, is_read_only: bool = False) -> AbstractAsyncContextManager[Transaction]:
        """Return a transaction; leaving it commits, an exception in it undoes it.

        Args:
            is_read_only: It changes nothing. SQLite then does not wait for writers.

        Raises:
            TransactionConflict: As StoreUnavailable; the same may succeed now.
            StoreUnavailable: The database cannot be used. Whether a lost commit took place is not known.
        """

    @abstractmethod
    async def close(self) -> None:
        """Close all connections; further transactions are refused."""

    @abstractmethod
    async def _try(self) -> None:
        """Use it once, and check that it is one that we can use.

        Raises:
            StoreUnavailable: It cannot be reached.
            StoreRefused: It cannot be used as it is.
        """

    async def open(self) -> None:
        """Use it for the first time. One that cannot be reached is tried from now on in the background.

        Raises:
            StoreRefused: It can be reached, and cannot be used.
        """
        try:
            await self._try()
        except StoreUnavailable as exc:
            self._note_down(exc.reason)
        else:
            self._note_up()

    async def run(
        self, function: Callable[[Transaction], Awaitable[ResultT]], *, is_read_only: bool = False
    ) -> ResultT:
        """Run a function in a transaction, again after each conflict.

        Args:
            function: May be run several times; only the last one's changes are kept.
            is_read_only: It changes nothing.

        Raises:
            StoreUnavailable: The database cannot be used, or there were too many conflicts.
        """
        pause_s = FIRST_PAUSE_S
        for _ in range(MAX_RUNS - 1):
            try:
                async with self.transaction(is_read_only=is_read_only) as transaction:
                    return await function(transaction)
            except TransactionConflict:
                await asyncio.sleep(pause_s * random.uniform(0.5, 1.5))
                pause_s = min(pause_s * 2, LONGEST_PAUSE_S)
        async with self.transaction(is_read_only=is_read_only) as transaction:
            return await function(transaction)

    async def listen(self, channel: str, callback: Callable[[str | None], None]) -> None:
        """Call `callback` with the text of each notification, and with None where some may have been missed.

        Where `can_listen` is False nothing is ever called.

        Args:
            channel: Its name.
            callback: Must not wait.
        """

    def _refuse_if_down(self) -> None:
        if self._is_closed:
            raise StoreUnavailable(CLOSED)
        if not self._is_up:
            raise StoreUnavailable(self._reason)

    def _reason_of(self, error: Exception) -> str | None:
        if isinstance(error, StoreUnavailable):
            return error.reason
        return str(error) if isinstance(error, StoreRefused) else None

    def _log_up(self) -> None:
        log.info("store_up", database=self.kind)

    def _log_down(self, reason: str) -> None:
        log.error("store_down", database=self.kind, reason=reason)

    def _log_other_reason(self, reason: str) -> None:
        self._log_down(reason)


@lru_cache(maxsize=512)
def compiled(statement: str) -> Executable:
    """Return a statement that was given as text; each text is read once."""
    return text(statement)
