"""One connection of `/ws`: who it is, which events it gets, its chats.

Nothing waits in memory for a client that does not read: events stay in the database, a chat's stream waits.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from appliance.base import jsons
from appliance.base.errors import (
    ApplianceError,
    Conflict,
    Exhausted,
    NotFound,
    Unauthenticated,
    Unavailable,
)
from appliance.base.logs import get_logger
from appliance.base.tasks import Tasks
from appliance.front.events.cursor import EventCursor, Log, Snapshot
from appliance.front.events.listeners import SYSTEM, Listener
from appliance.front.events.messages import (
    chat_body_in,
    chat_id_in,
    read_message,
    seq_in,
    token_in,
    topics_in,
)
from appliance.front.pipeline.sockets import GOING_AWAY, POLICY, TRY_LATER, MessageSocket

log = get_logger("front")


class UserFeed(Protocol):
    """The events, and what wakes those that wait for them (accounts.event_feed.EventFeed)."""

    @property
    def log(self) -> Log:
        """The events."""

    def waiting(self, *user_ids: str | None) -> Any:
        """Yield what is set whenever there may be new events of one of these receivers."""


class Chats(Protocol):
    """Answers chats (chats.SocketChats)."""

    def answer(
        self, headers: dict[str, str], peer: str, body: dict[str, Any]
    ) -> AsyncGenerator[dict[str, Any], None]:
        """Yield a chat's messages."""


class SocketAdmission(Protocol):
    """Says who may connect, and counts connections."""

    async def find(self, headers: dict[str, str], peer: str) -> Listener:
        """Return who may hear what; raises as `find_listener`."""

    def enter(self, listener: Listener) -> Callable[[], None]:
        """Count a connection; return what ends it. Raises Exhausted: this user has too many."""


@dataclass(frozen=True, slots=True)
class SocketTimes:
    """Times of a connection, seconds.

    Attributes:
        auth_s: Until it says who it is.
        check_s: Between two looks whether its credential is still valid.
        send_s: A client that takes no message for so long is cut off.
    """

    auth_s: float = 5.0
    check_s: float = 1.0
    send_s: float = 30.0


@dataclass(frozen=True, slots=True)
class SocketParts:
    """What connections share.

    Attributes:
        snapshots: The present state of topics, for clients that have missed events.
        closed: Set when all connections end.
    """

    feed: UserFeed
    chats: Chats
    admission: SocketAdmission
    snapshots: Mapping[str, Snapshot]
    closed: asyncio.Event
    times: SocketTimes


DEFAULT_TIMES = SocketTimes()
MAX_CHATS = 8  # of one connection at a time


class EventSocket:
    """One connection.

    Args:
        socket: It.
        peer: The caller's address.
        headers: With the credential; None = it has not said yet who it is.
        listener: Who it is; None likewise.
    """

    def __init__(
        self,
        parts: SocketParts,
        socket: MessageSocket,
        *,
        peer: str,
        headers: dict[str, str] | None,
        listener: Listener | None,
    ) -> None:
        self._parts = parts
        self._socket = socket
        self._peer = peer
        self._headers = headers or {}
        self._listener = listener
        self._cursors: list[EventCursor] = []
        self._is_moving = asyncio.Lock()  # held while events of the cursors are sent, or they are exchanged
        self._woken = asyncio.Event()
        self._chats: dict[str, asyncio.Task[None]] = {}
        self._leave: Callable[[], None] | None = None

    async def run(self) -> None:
        """Serve it until it ends."""
        async with Tasks() as tasks:
            self._tasks = tasks
            tasks.start(self._end_at_close(), name="socket_close")
            try:
                if self._listener is not None:
                    self._begin(self._listener)
                elif not await self._authenticate():
                    return
                while (raw := await self._socket.receive()) is not None:
                    await self._handle(raw)
            except Exhausted as error:
                await self._refuse(error)
            except ConnectionError:
                pass
            finally:
                if self._leave is not None:
                    self._leave()

    # ---- who it is

    async def _authenticate(self) -> bool:
        """Wait for the message that says who it is; False = the connection ends without it."""
        try:
            async with asyncio.timeout(self._parts.times.auth_s):
                while self._listener is None:
                    raw = await self._socket.receive()
                    if raw is None:
                        return False
                    await self._handle(raw)
        except TimeoutError:
            await self._refuse(_not_authenticated())
            return False
        return True

    def _begin(self, listener: Listener) -> None:
        self._leave = self._parts.admission.enter(listener)
        self._listener = listener
        self._tasks.start(self._tell(listener), name="socket_events")

    async def _check(self) -> bool:
        """Look whether the credential is still valid, and for which topics."""
        assert self._listener is not None
        try:
            now = await self._parts.admission.find(self._headers, self._peer)
        except Unavailable:
            return True  # the database is down: what is in memory does not refuse it
        except ApplianceError as error:
            await self._refuse(error)
            return False
        if now.user_id != self._listener.user_id:
            await self._refuse(_not_authenticated())
            return False
        if now != self._listener:
            self._listener = now
            async with self._is_moving:
                self._cursors = [
                    EventCursor(
                        self._parts.feed.log,
                        one.user_id,
                        one.topics & now.all_topics,
                        one.after,
                        snapshots=self._parts.snapshots,
                    )
                    for one in self._cursors
                ]
        return True

    # ---- events

    async def _tell(self, listener: Listener) -> None:
        """Send what is new, whenever something is, and look after the credential."""
        receivers = [listener.user_id] if listener.user_id is not None else []
        times = self._parts.times
        loop = asyncio.get_running_loop()
        checked_s = loop.time()
        with self._parts.feed.waiting(*receivers, None) as woken:
            self._woken = woken
            try:
                while True:
                    woken.clear()
                    await self._send_new()
                    try:
                        async with asyncio.timeout(times.check_s):
                            await woken.wait()
                    except TimeoutError:
                        pass
                    if loop.time() - checked_s >= times.check_s:
                        checked_s = loop.time()
                        if not await self._check():
                            return
            except ConnectionError:
                pass  # the reader sees it, too

    async def _send_new(self) -> None:
        try:
            more = True
            while more:
                async with self._is_moving:
                    more = False
                    for cursor in self._cursors:
                        for message in await cursor.messages():
                            await self._send(message)
                            more = True
        except Unavailable:
            self._woken.set()  # the database is down: again, after the next look
            await asyncio.sleep(self._parts.times.check_s)

    # ---- messages

    async def _handle(self, raw: str | bytes) -> None:
        """Answer one message; a fault of it is answered, and the connection goes on."""
        message: dict[str, Any] = {}
        try:
            message = read_message(raw)
            kind = message["type"]
            if kind == "ping":
                await self._send({"type": "pong"})
            elif kind == "auth":
                await self._log_in(message)
            elif self._listener is None:
                raise _not_authenticated()
            elif kind == "subscribe":
                await self._subscribe(message, self._listener)
            elif kind == "unsubscribe":
                await self._unsubscribe(message, self._listener)
            elif kind == "chat":
                self._start_chat(message)
            else:
                self._cancel_chat(message)
        except Exhausted:
            raise  # this user has too many connections: this one ends
        except ApplianceError as error:
            await self._send(_error_message(error, message.get("id")))

    async def _log_in(self, message: dict[str, Any]) -> None:
        if self._listener is not None:
            raise Conflict("This connection has said already who it is.", code="authenticated_already")
        headers = {"authorization": f"Bearer {token_in(message)}"}
        listener = await self._parts.admission.find(headers, self._peer)
        self._headers = headers
        self._begin(listener)
        await self._send({"type": "authenticated", "topics": sorted(listener.all_topics)})

    async def _subscribe(self, message: dict[str, Any], listener: Listener) -> None:
        """Begin at `after`; without it where the connection is, at first after the newest event."""
        topics = topics_in(message, listener.all_topics)
        wanted: list[tuple[str | None, frozenset[str], int | None]] = []
        if listener.user_id is not None:
            wanted.append((listener.user_id, topics - {SYSTEM}, seq_in(message, "after")))
        if SYSTEM in topics:
            name = "after_system" if listener.user_id is not None else "after"
            wanted.append((None, frozenset({SYSTEM}), seq_in(message, name)))
        events = self._parts.feed.log
        async with self._is_moving:
            known = {one.user_id: one.after for one in self._cursors}
            cursors = []
            for user_id, named, after in wanted:
                if after is None:
                    after = known.get(user_id)
                if after is None:
                    after = (await events.span(user_id)).newest
                cursors.append(EventCursor(events, user_id, named, after, snapshots=self._parts.snapshots))
            self._cursors = cursors
            await self._send(
                {
                    "type": "subscribed",
                    "message": f"Subscribed to {', '.join(sorted(topics)) or 'no topic'}.",
                    "topics": sorted(topics),
                    "seq": cursors[0].after if cursors else 0,
                }
            )
        self._woken.set()

    async def _unsubscribe(self, message: dict[str, Any], listener: Listener) -> None:
        """Leave topics; without names all of them. The number that was reached stays."""
        topics = topics_in(message, listener.all_topics)
        async with self._is_moving:
            for cursor in self._cursors:
                cursor.topics -= topics
            left = sorted({topic for cursor in self._cursors for topic in cursor.topics})
            await self._send({"type": "unsubscribed", "topics": left})

    # ---- chats

    def _start_chat(self, message: dict[str, Any]) -> None:
        chat_id, body = chat_id_in(message), chat_body_in(message)
        if chat_id in self._chats:
            raise Conflict(f"The chat {chat_id!r} is running; give each its own `id`.", code="chat_running")
        if len(self._chats) >= MAX_CHATS:
            raise Conflict(
                f"At most {MAX_CHATS} chats run on one connection at a time.", code="too_many_chats"
            )
        task = self._tasks.start(self._chat(chat_id, body), name="socket_chat")
        self._chats[chat_id] = task
        task.add_done_callback(lambda _: self._chats.pop(chat_id, None))

    async def _chat(self, chat_id: str, body: dict[str, Any]) -> None:
        answer = self._parts.chats.answer(self._headers, self._peer, body)
        try:
            async for message in answer:
                await self._send({"id": chat_id, **message})
        except ConnectionError:
            pass
        finally:
            await answer.aclose()  # the request is settled, at the latest now

    def _cancel_chat(self, message: dict[str, Any]) -> None:
        chat_id = chat_id_in(message)
        task = self._chats.get(chat_id)
        if task is None:
            raise NotFound(f"No chat {chat_id!r} is running.", code="chat_unknown")
        task.cancel()
        self._tasks.start(self._say_cancelled(chat_id, task), name="socket_cancelled")

    async def _say_cancelled(self, chat_id: str, task: asyncio.Task[None]) -> None:
        await asyncio.wait({task})
        try:
            await self._send({"id": chat_id, "type": "done", "finish": "cancelled"})
        except ConnectionError:
            pass

    # ---- sending, and the end

    async def _send(self, message: dict[str, Any]) -> None:
        """Send a message.

        Raises:
            ConnectionError: The connection has ended; also by a client that does not read.
        """
        try:
            async with asyncio.timeout(self._parts.times.send_s):
                await self._socket.send(jsons.dumps_text(message))
        except TimeoutError:
            log.warning("socket_not_read", peer=self._peer)
            await self._socket.close(TRY_LATER, "The connection is not read.")
            raise ConnectionResetError("the client does not read") from None

    async def _refuse(self, error: ApplianceError) -> None:
        """Say why, and end the connection."""
        try:
            await self._send(_error_message(error))
        except ConnectionError:
            return
        await self._socket.close(POLICY, (error.code or error.kind.value)[:100])

    async def _end_at_close(self) -> None:
        await self._parts.closed.wait()
        await self._socket.close(GOING_AWAY, "The appliance stops.")


def _not_authenticated() -> Unauthenticated:
    return Unauthenticated(
        "Authenticate first: connect with an API key or access token in a header or as the subprotocol "
        '`bearer.TOKEN`, or send {"type": "auth", "token": "..."} as the first message.',
        code="authentication_required",
    )


def _error_message(error: ApplianceError, message_id: object = None) -> dict[str, Any]:
    message = {"type": "error", "error": error.message, "code": error.code or error.kind.value}
    if isinstance(message_id, str) and message_id:
        message["id"] = message_id[:64]
    return message
