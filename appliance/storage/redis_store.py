"""Redis, as accounts use it: commands, scripts, counters of all replicas, messages to all replicas.

While it is down everything is refused at once with RedisUnavailable, and a background task tries it; nothing
has to be started again. Apart from sessions with SESSION_MODE=redis it keeps nothing that cannot be lost.
"""

import asyncio
import hashlib
import random
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from appliance.base.errors import Unavailable
from appliance.base.logs import get_logger
from appliance.base.redis_client import RedisAddress, open_redis, redis_failures
from appliance.base.tasks import Tasks
from appliance.storage.probed import ProbedStore
from appliance.storage.settings import StorageSettings

if TYPE_CHECKING:
    from redis.asyncio import Redis

log = get_logger("storage")
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.2, 5.0
SILENCE_S = 15.0  # a subscription that hears nothing is tried
MAX_ERROR_CHARS = 300
Command = Sequence[str | bytes | int | float]


class RedisUnavailable(Unavailable):
    """Redis cannot be reached, refuses us, or does not answer in time.

    Args:
        reason: For the log and for operators: it names hosts, and no secret. Callers are not told.
    """

    default_code = "store_unavailable"

    def __init__(self, reason: str) -> None:
        super().__init__("The Redis of accounts is not available. Try again shortly.", retry_after_s=1.0)
        self.reason = reason

    def __str__(self) -> str:
        return f"Redis is not available: {self.reason}"


class RedisStore(ProbedStore):
    """One Redis, for sessions, limits and messages.

    Args:
        address: Which one.
        connect_timeout_s: Longest wait for a connection, in seconds.
        reply_timeout_s: Longest wait for a reply, in seconds.
        max_connections: At a time; each subscription has one more.
        tasks: What runs in the background.
        on_change: Called with True and False when it comes up or goes down.
    """

    probe_name: ClassVar[str] = "redis_probe"

    def __init__(
        self,
        address: RedisAddress,
        *,
        connect_timeout_s: float,
        reply_timeout_s: float,
        max_connections: int,
        tasks: Tasks,
        on_change: Callable[[bool], None] | None = None,
    ) -> None:
        super().__init__(tasks, on_change)
        self.address = address
        self._options: dict[str, Any] = {
            "connect_timeout_s": connect_timeout_s,
            "reply_timeout_s": reply_timeout_s,
        }
        self._max_connections = max_connections
        self._limit_s = connect_timeout_s + reply_timeout_s
        self._redis: Redis | None = None
        self._failures: tuple[type[Exception], ...] = (OSError, TimeoutError)

    async def open(self) -> None:
        """Use it for the first time. One that cannot be reached is tried from now on in the background."""
        self._redis = await open_redis(self.address, max_connections=self._max_connections, **self._options)
        self._failures = redis_failures()
        try:
            await self._try()
        except self._failures as exc:
            self._note_down(self._describe(exc))
        else:
            self._note_up()

    async def send(self, commands: Sequence[Command], *, is_transaction: bool = False) -> list[Any]:
        """Send commands together; return their replies, texts as bytes.

        Args:
            commands: Each its words.
            is_transaction: No command of another client comes between them.

        Raises:
            RedisUnavailable: Not all of them were carried out.
        """

        async def exchange(redis: "Redis") -> list[Any]:
            async with redis.pipeline(transaction=is_transaction) as pipe:
                for command in commands:
                    pipe.execute_command(*command)
                return list(await pipe.execute())

        replies: list[Any] = await self._use(exchange)
        return replies

    async def run_script(
        self, script: str, keys: Sequence[str], arguments: Sequence[str | bytes | int]
    ) -> Any:
        """Run a script in Lua; Redis keeps it by its digest, and gets its text when it does not know it.

        Args:
            script: Its text.
            keys: All keys that it uses.
            arguments: What else it gets.

        Raises:
            RedisUnavailable: It was not run, or failed.
        """
        digest = hashlib.sha1(script.encode(), usedforsecurity=False).hexdigest()

        async def call(redis: Any) -> Any:
            from redis.exceptions import NoScriptError

            try:
                return await redis.execute_command("EVALSHA", digest, len(keys), *keys, *arguments)
            except NoScriptError:
                return await redis.execute_command("EVAL", script, len(keys), *keys, *arguments)

        return await self._use(call)

    async def add(self, items: Sequence[tuple[str, int, int]]) -> list[int]:
        """Add to counters, in one round trip.

        Args:
            items: (name, amount, seconds after which it may be forgotten); amount 0 reads.

        Returns:
            The counts afterwards.

        Raises:
            RedisUnavailable: Not all of them were counted.
        """
        commands: list[Command] = []
        for name, amount, lifetime_s in items:
            commands.append(("INCRBY", name, amount) if amount else ("GET", name))
            if amount:
                commands.append(("EXPIRE", name, lifetime_s))
        replies = iter(await self.send(commands))
        counts = []
        for _, amount, _ in items:
            counts.append(int(next(replies) or 0))
            if amount:
                next(replies)
        return counts

    async def publish(self, channel: str, text: str = "") -> None:
        """Send a message to all who listen now.

        Raises:
            RedisUnavailable: It was not sent.
        """
        await self.send([("PUBLISH", channel, text)])

    async def listen(self, channel: str, callback: Callable[[str | None], None]) -> None:
        """Call `callback` with the text of each message, and with None where some may have been missed.

        Args:
            channel: Its name.
            callback: Must not wait.
        """
        self._tasks.start(self._listen(channel, callback), name=f"redis_listen_{channel}")

    async def close(self) -> None:
        """Close all connections; what follows is refused."""
        self._is_closed = True
        redis, self._redis = self._redis, None
        if redis is not None:
            await redis.aclose()

    async def _use(self, work: Callable[["Redis"], Any]) -> Any:
        if self._is_closed or self._redis is None:
            raise RedisUnavailable("it is closed, since the appliance stops")
        if not self._is_up:
            raise RedisUnavailable(self._reason)
        try:
            async with asyncio.timeout(self._limit_s):
                return await work(self._redis)
        except self._failures as exc:
            if _is_answer(exc):  # it works, and this command does not
                raise RedisUnavailable(self._describe(exc)) from None
            self._note_down(self._describe(exc))
            raise RedisUnavailable(self._reason) from None

    async def _try(self) -> None:
        redis: Any = self._redis
        if redis is None:
            return
        async with asyncio.timeout(self._limit_s):
            await redis.execute_command("PING")

    def _describe(self, exc: Exception) -> str:
        return f"{self.address}: {str(exc)[:MAX_ERROR_CHARS] or type(exc).__name__}"

    def _reason_of(self, error: Exception) -> str | None:
        return self._describe(error) if isinstance(error, self._failures) else None

    def _log_up(self) -> None:
        log.info("redis_up", redis=str(self.address))

    def _log_down(self, reason: str) -> None:
        log.warning("redis_down", redis=str(self.address), reason=reason)

    async def _listen(self, channel: str, callback: Callable[[str | None], None]) -> None:
        pause_s = FIRST_PAUSE_S
        while not self._is_closed:
            redis = await open_redis(self.address, max_connections=1, **self._options)
            failures = redis_failures()
            try:
                async with redis.pubsub() as subscription:
                    await subscription.subscribe(channel)
                    callback(None)
                    pause_s = FIRST_PAUSE_S
                    while True:
                        await self._hear(subscription, callback)
            except failures as exc:
                log.debug("redis_listener_lost", reason=self._describe(exc))
            finally:
                await redis.aclose()
            await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))
            pause_s = min(pause_s * 2, LONGEST_PAUSE_S)

    @staticmethod
    async def _hear(subscription: Any, callback: Callable[[str | None], None]) -> None:
        """Hand over one message; a silent connection is tried."""
        message = await subscription.get_message(timeout=SILENCE_S)
        if message is None:
            await subscription.ping()
        elif message["type"] == "message":
            callback(message["data"].decode("utf-8", "replace"))


def _is_answer(exc: Exception) -> bool:
    """Say whether Redis itself answered with an error that concerns one command."""
    from redis.exceptions import AuthenticationError, BusyLoadingError, ResponseError

    return isinstance(exc, ResponseError) and not isinstance(exc, AuthenticationError | BusyLoadingError)


def build_redis(
    settings: StorageSettings, *, tasks: Tasks, on_change: Callable[[bool], None] | None = None
) -> RedisStore | None:
    """Build the Redis of the settings; None = there is none, since REDIS_HOST is not set.

    Args:
        settings: REDIS_*.
        tasks: What runs in the background.
        on_change: Called with True and False when it comes up or goes down.
    """
    if not settings.redis_host:
        return None
    return RedisStore(
        RedisAddress(
            settings.redis_host,
            settings.redis_port,
            settings.redis_db,
            settings.redis_password,
            settings.redis_tls,
        ),
        connect_timeout_s=settings.redis_dial_timeout,
        reply_timeout_s=max(settings.redis_read_timeout, settings.redis_write_timeout),
        max_connections=settings.redis_pool_size,
        tasks=tasks,
        on_change=on_change,
    )
