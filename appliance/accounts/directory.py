"""Keeps the snapshot of users and keys current: fills it, follows changes, looks up what is missing.

While the database is down the snapshot stays as it is, for SNAPSHOT_MAX_AGE_S; after a restart meanwhile it
comes from its file.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Final, TypeVar

from sqlalchemy import update

from appliance.accounts.actor import UserFacts
from appliance.accounts.api_keys import digest_of
from appliance.accounts.callers import Callers, credentials
from appliance.accounts.changes import KEEP_S, ChangeFeed
from appliance.accounts.snapshot import Snapshot
from appliance.accounts.snapshot_file import SnapshotContent, SnapshotFile
from appliance.accounts.snapshot_reader import SnapshotReader
from appliance.accounts.tokens import AccessTokens
from appliance.base.clock import Clock
from appliance.base.errors import Unavailable
from appliance.base.logs import get_logger
from appliance.base.tasks import Tasks
from appliance.storage.database import Database, StoreUnavailable, Transaction
from appliance.storage.schema import api_keys

log = get_logger("accounts")
NameT = TypeVar("NameT", bytes, str)
TOGETHER: Final = 100  # keys that one statement looks up
MAX_WAITING: Final = 1000
KEEP_FILE_S: Final = 30.0
FILE_PAUSE: Final = 50  # times as long as a write took: at most 2 % of a processor
USED_S: Final = 60.0
PRUNE_S: Final = 3600.0
REFILL_AFTER_S: Final = KEEP_S / 2  # after so long without the database, changes may have been deleted


class Directory:
    """Users and keys in memory, as the database has them.

    Args:
        file: The snapshot on disk; None = there is none.
    """

    def __init__(
        self,
        database: Database,
        snapshot: Snapshot,
        reader: SnapshotReader,
        changes: ChangeFeed,
        tokens: AccessTokens,
        *,
        clock: Clock,
        tasks: Tasks,
        file: SnapshotFile | None = None,
    ) -> None:
        self._database = database
        self._snapshot = snapshot
        self._reader = reader
        self._changes = changes
        self._tokens = tokens
        self._clock = clock
        self._tasks = tasks
        self._file = file
        self._written_version = -1
        self._written_as_of_s = 0.0
        self._write_after_s = float("-inf")
        self._is_filled = False
        self._is_filling = False
        self._wanted_keys: dict[bytes, asyncio.Future[None]] = {}
        self._wanted_users: dict[str, asyncio.Future[None]] = {}
        self._is_looking_up = False
        changes.on("user", self._users_changed)
        changes.on("key", reader.read_keys)
        changes.on("session", self._sessions_changed)
        changes.on_read(self._confirm)

    # ---- start

    async def start(self) -> None:
        """Fill the snapshot from the database or, while that is down, the file; follow changes from now."""
        try:
            await self._fill()
        except StoreUnavailable as error:
            is_loaded = self._file is not None and await asyncio.to_thread(self._file.load, self._snapshot)
            log.warning(
                "accounts_without_store",
                reason=error.reason,
                known_keys=len(self._snapshot.keys) if is_loaded else 0,
            )
        self._tasks.start(self._follow(), name="accounts_changes")
        self._tasks.every(USED_S, self.write_used, name="accounts_keys_used")
        self._tasks.every(PRUNE_S, self._prune, name="accounts_prune")
        if self._file is not None:
            self._tasks.every(KEEP_FILE_S, self.write_file, name="accounts_snapshot")

    async def _fill(self) -> None:
        await self._changes.start()
        await self._reader.fill()
        self._is_filled = True
        log.info("accounts_read", keys=len(self._snapshot.keys), users=len(self._snapshot.users))

    async def _follow(self) -> None:
        while not self._is_filled:
            try:
                await self._fill()
            except StoreUnavailable:
                await asyncio.sleep(0.5)
        await self._changes.run()

    # ---- look up

    async def look_up(self, headers: dict[str, str], callers: Callers) -> None:
        """Look up the credentials of a request that are not in memory; then `callers.admit` decides.

        Raises:
            StoreUnavailable: The database is down.
            Unavailable: Too many are being looked up.
        """
        for text in credentials(headers):
            if not callers.needs_look_up(text):
                continue
            user_id = callers.unknown_user(text)
            if user_id is not None:
                await self.find_user(user_id)
            else:
                await self._find(self._wanted_keys, digest_of(text))

    async def find_user(self, user_id: str) -> None:
        """Read a user into memory, if there is one of this id.

        Raises:
            StoreUnavailable: The database is down.
            Unavailable: Too many are being looked up.
        """
        await self._find(self._wanted_users, user_id)

    async def _find(self, wanted: dict[NameT, asyncio.Future[None]], one: NameT) -> None:
        future = wanted.get(one)
        if future is None:
            if len(wanted) >= MAX_WAITING:
                raise Unavailable(
                    "Too many unknown keys are being looked up. Try again shortly.",
                    code="busy",
                    retry_after_s=1,
                )
            future = wanted[one] = asyncio.get_running_loop().create_future()
            if not self._is_looking_up:
                self._is_looking_up = True
                self._tasks.start(self._look_up_all(), name="accounts_look_up")
        await asyncio.shield(future)

    async def _look_up_all(self) -> None:
        """Look up what is wanted: one statement at a time, with all that wait for it."""
        try:
            while self._wanted_keys or self._wanted_users:
                keys = dict(list(self._wanted_keys.items())[:TOGETHER])
                await self._answer(self._wanted_keys, keys, self._reader.find_keys)
                users = dict(list(self._wanted_users.items())[:TOGETHER])
                await self._answer(self._wanted_users, users, self._find_users)
        finally:
            self._is_looking_up = False

    async def _answer(
        self,
        wanted: dict[NameT, asyncio.Future[None]],
        some: dict[NameT, asyncio.Future[None]],
        work: Callable[[list[NameT]], Awaitable[None]],
    ) -> None:
        if not some:
            return
        failure: Exception | None = None
        try:
            await work(list(some))
        except Exception as error:
            failure = error
        for one, future in some.items():
            del wanted[one]
            if future.done():
                continue
            if failure is None:
                future.set_result(None)
            else:
                future.set_exception(failure)
                future.exception()  # its caller may have left

    async def _find_users(self, ids: list[str]) -> None:
        for user_id in await self._reader.read_users(ids, is_known_only=False):
            self._snapshot.note_unknown(digest_of(user_id))

    async def user(self, user_id: str) -> UserFacts | None:
        """Return what is known of a user, from memory or the database; None = there is no such user.

        Raises:
            StoreUnavailable: The database is down, and the user is not in memory.
        """
        found = self._snapshot.users.get(user_id)
        if found is None and not self._snapshot.is_unknown(digest_of(user_id)):
            await self.find_user(user_id)
            found = self._snapshot.users.get(user_id)
        return found

    # ---- changes

    async def sessions_ended(self, ids: Iterable[str]) -> None:
        """Refuse the access tokens of sessions that were ended, and wake the other replicas."""
        self.note_ended(ids)
        await self._changes.announce()

    def note_ended(self, ids: Iterable[str]) -> None:
        """Refuse the access tokens of sessions that were ended."""
        until_s = self._clock.now_s() + self._tokens.lifetime_s
        for session_id in ids:
            self._snapshot.end_session(session_id, until_s)
            self._tokens.forget_session(session_id)

    async def _users_changed(self, ids: set[str]) -> None:
        self._snapshot.forget_unknown()
        await self._reader.read_users(ids)

    async def _sessions_changed(self, ids: set[str]) -> None:
        for session_id in await self._reader.read_ended(ids):
            self._tokens.forget_session(session_id)

    def _confirm(self, at_s: float) -> None:
        if at_s - self._snapshot.as_of_s < REFILL_AFTER_S:
            self._snapshot.confirm(at_s)
        elif not self._is_filling:
            self._is_filling = True
            self._tasks.start(self._fill_again(), name="accounts_fill")

    async def _fill_again(self) -> None:
        try:
            await self._reader.fill()
        except StoreUnavailable:
            pass  # the next reading of changes tries again
        finally:
            self._is_filling = False

    async def apply(self, kind: str, ids: Iterable[str]) -> None:
        """Take a change of this replica at once; the others hear of it by `changes`."""
        try:
            if kind == "key":
                await self._reader.read_keys(ids)
            elif kind == "user":
                await self._users_changed(set(ids))
        except StoreUnavailable:
            pass  # it is read with the other changes
        await self._changes.announce()

    # ---- what is written

    async def write_file(self, *, is_forced: bool = False) -> None:
        """Write the snapshot to its file, if something has changed or the file becomes old.

        Args:
            is_forced: Do not wait, as after a write that took long.
        """
        snapshot = self._snapshot
        if self._file is None or not self._is_filled:
            return
        is_old = snapshot.as_of_s - self._written_as_of_s > 10 * KEEP_FILE_S
        if snapshot.version == self._written_version and not is_old:
            return
        began_s = self._clock.monotonic_s()
        if began_s < self._write_after_s and not is_forced:
            return
        version, as_of_s = snapshot.version, snapshot.as_of_s
        content = SnapshotContent.of(snapshot)
        try:
            await asyncio.to_thread(self._file.write, content)
        except OSError as error:
            log.warning("snapshot_unwritten", error=repr(error))
            return
        self._written_version, self._written_as_of_s = version, as_of_s
        ended_s = self._clock.monotonic_s()
        self._write_after_s = ended_s + FILE_PAUSE * (ended_s - began_s)

    async def write_used(self) -> None:
        """Write which keys were used since the last call."""
        used = self._snapshot.take_used()
        now_ms = round(self._clock.now_s() * 1000)

        async def work(transaction: Transaction) -> None:
            for start in range(0, len(used), TOGETHER):
                some = used[start : start + TOGETHER]
                await transaction.execute(
                    update(api_keys).where(api_keys.c.id.in_(some)).values(last_used_at=now_ms)
                )

        if used and self._database.is_up:
            try:
                await self._database.run(work)
            except StoreUnavailable:
                pass  # it is only for people to read

    async def _prune(self) -> None:
        self._snapshot.forget_ended()
        if self._database.is_up:
            await self._changes.prune()
