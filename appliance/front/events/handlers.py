"""The addresses of events and of figures. For compatibility, see docs/compatibility.md."""

import asyncio
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final

from appliance.base.errors import Exhausted, Forbidden, Invalid
from appliance.front.events.cursor import EventCursor, Snapshot
from appliance.front.events.event_socket import (
    DEFAULT_TIMES,
    Chats,
    EventSocket,
    SocketParts,
    SocketTimes,
    UserFeed,
)
from appliance.front.events.listeners import Listener, find_listener
from appliance.front.events.messages import topics_in
from appliance.front.pipeline.access import Access
from appliance.front.pipeline.pipeline import RequestPipeline
from appliance.front.pipeline.query import Query
from appliance.front.pipeline.request import Request
from appliance.front.pipeline.response import Response, json_response
from appliance.front.pipeline.route import Route
from appliance.front.pipeline.sockets import AcceptedSocket, MessageSocket

MAX_SOCKETS: Final = 8  # of a user
MAX_WAIT_S: Final = 60
WAIT_S: Final = 25
PROTOCOL: Final = "appliance.events"
BEARER: Final = "bearer."
UNKNOWN_BYTES: Final = 64 * 1024  # of a message of a client that has not said who it is
KNOWN_BYTES: Final = 4 * 1024 * 1024


class EventHandlers:
    """The handlers of events.

    Args:
        pipeline: Admits callers.
        feed: The events.
        chats: Answers chats.
        snapshots: The present state of topics, for clients that have missed events.
        stats: Returns the figures of `/stats`.
        times: Of sockets.
    """

    def __init__(
        self,
        pipeline: RequestPipeline,
        feed: UserFeed,
        chats: Chats,
        *,
        snapshots: Mapping[str, Snapshot],
        stats: Callable[[], dict[str, float]],
        times: SocketTimes = DEFAULT_TIMES,
    ) -> None:
        self._pipeline = pipeline
        self._feed = feed
        self._stats = stats
        self._snapshots = snapshots
        self._closed = asyncio.Event()
        self._open: dict[str | None, int] = {}
        self._parts = SocketParts(feed, chats, self, snapshots, self._closed, times)

    def routes(self) -> list[Route]:
        """Return this group's addresses."""
        public = partial(Route, ("GET",), dialect="market", access=Access.PUBLIC)
        return [
            public("/ws", self.no_socket, socket=self.accept, is_open_while_draining=True),
            Route(
                ("GET",),
                "/polling",
                self.polling,
                dialect="market",
                access=Access.ACCOUNT,
                scope="",
                is_open_while_draining=True,
            ),
            Route(("GET",), "/stats", self.stats, dialect="market", scope="", is_open_while_draining=True),
            public("/monitor", self.monitor, is_open_while_draining=True),
        ]

    def close(self) -> None:
        """End all connections and waits: the appliance stops."""
        self._closed.set()

    # ---- sockets

    async def no_socket(self, request: Request) -> Response:
        """Open a WebSocket: events as they happen, and chats. The messages are in docs/events.md."""
        raise Invalid(
            "This address is a WebSocket: send `Upgrade: websocket`.",
            code="upgrade_required",
            details={"status": 426},
        )

    async def accept(self, request: Request) -> AcceptedSocket:
        """Accept a connection, or refuse it in HTTP.

        1. a web page of another site                          → refused
        2. a credential in a header or in the subprotocol      → who it is; refused if it is not valid
        3. none                                                → it has to say it in its first message

        Raises:
            Forbidden, Unauthenticated, Exhausted, Unavailable: As above, or too many connections.
        """
        headers = request.headers
        if not self._pipeline.keys.origins.may_page_call(headers):  # 1
            raise Forbidden(
                f"Pages of {headers.get('origin', '')[:100]!r} may not open this WebSocket. The operator can "
                "name this origin in CORS_ORIGINS.",
                code="origin_not_allowed",
            )
        offered = [one.strip() for one in headers.get("sec-websocket-protocol", "").split(",")]
        known: dict[str, str] = {
            name: headers[name] for name in ("x-api-key", "authorization") if name in headers
        }
        bearer = next((one for one in offered if one.startswith(BEARER) and len(one) > len(BEARER)), "")
        if not known and bearer:
            known = {"authorization": f"Bearer {bearer.removeprefix(BEARER)}"}
        protocols = (PROTOCOL,) if PROTOCOL in offered else (bearer,) if bearer else ()
        listener = None
        if known:  # 2
            listener = await self.find(known, request.peer)
            self._check_count(listener)

        async def serve(socket: MessageSocket) -> None:
            await EventSocket(
                self._parts, socket, peer=request.peer, headers=known or None, listener=listener
            ).run()

        most = UNKNOWN_BYTES if listener is None else KNOWN_BYTES
        return AcceptedSocket(serve, protocols, min(most, self._pipeline.settings.max_body_bytes))

    async def find(self, headers: dict[str, str], peer: str) -> Listener:
        """Return who may hear what (see `find_listener`)."""
        gate = self._pipeline.accounts
        assert gate is not None
        return await find_listener(gate, headers, peer)

    def enter(self, listener: Listener) -> Callable[[], None]:
        """Count a connection; return what ends it.

        Raises:
            Exhausted: This user has too many.
        """
        self._check_count(listener)
        name = listener.user_id
        self._open[name] = self._open.get(name, 0) + 1

        def leave() -> None:
            self._open[name] -= 1
            if not self._open[name]:
                del self._open[name]

        return leave

    def _check_count(self, listener: Listener) -> None:
        if self._open.get(listener.user_id, 0) >= MAX_SOCKETS:
            raise Exhausted(
                f"At most {MAX_SOCKETS} WebSockets of one user are open at a time. Close one of them.",
                code="too_many_sockets",
            )

    # ---- without a socket

    async def polling(self, request: Request) -> Response:
        """Wait for one's next events: those after `?after=`, at most `wait` seconds, of `topics`.

        Without `after` it answers at once with the number to begin after. `wait` is 0 to 60, 25 where it is
        not given. `topics` are names with commas between them, all where it is not given.

        Returns:
            `{events: [{seq, topic, at, data}], next, gap?}`; `next` is the next `after`, `gap` says which
            numbers are no longer kept: `{from, to}`.
        """
        query = Query(request.query, allowed=("after", "wait", "topics"))
        wait_s = query.number("wait", default=WAIT_S, low=0, high=MAX_WAIT_S)
        after = query.number("after", default=0, low=0, high=999_999_999)
        listener = await self.find(request.headers, request.peer)
        named = [one.strip() for one in query.text("topics").split(",") if one.strip()]
        topics = topics_in({"topics": named} if named else {}, listener.topics)
        if not query.text("after"):
            newest = (await self._feed.log.span(listener.user_id)).newest
            return json_response({"events": [], "next": newest})
        cursor = EventCursor(self._feed.log, listener.user_id, topics, after)
        answer: dict[str, Any] = {}
        with self._feed.waiting(listener.user_id) as woken:
            deadline_s = asyncio.get_running_loop().time() + wait_s
            messages = await cursor.messages()
            while not messages and await self._wait(woken, deadline_s):
                woken.clear()
                messages = await cursor.messages()
        events = [{k: v for k, v in one.items() if k != "type"} for one in messages if one["type"] == "event"]
        for one in messages:
            if one["type"] == "gap":
                answer["gap"] = {"from": one["from"], "to": one["to"]}
        return json_response({"events": events, "next": cursor.after, **answer})

    async def _wait(self, woken: asyncio.Event, deadline_s: float) -> bool:
        """Wait until there may be something new; False = the time is over, or the appliance stops."""
        left_s = deadline_s - asyncio.get_running_loop().time()
        if left_s <= 0 or self._closed.is_set():
            return False
        waits = [asyncio.ensure_future(one.wait()) for one in (woken, self._closed)]  # noqa: TID251 - both end here
        try:
            await asyncio.wait(waits, timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for one in waits:
                one.cancel()
        return woken.is_set() and not self._closed.is_set()

    async def stats(self, request: Request) -> Response:
        """Show the figures of the metrics with `gpuproxy_` in their names, as one JSON object."""
        return json_response(self._stats())

    async def monitor(self, request: Request) -> Response:
        """Lead to the web UI."""
        return Response(302, content_type="text/html", headers=[("Location", "ui/")])
