"""The addresses of the web UI: its files, who is signed in, one stream of what happens, the last hour.

Everything else that its pages do are the documented addresses that other programs use as well.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from functools import partial
from math import ceil
from typing import Any, Final

from appliance.base.errors import ApplianceError, Exhausted, Invalid, NotFound, Unauthenticated
from appliance.engines.stream import GeneratedStream
from appliance.front.pipeline.access import TOKEN_PREFIX, Access, read_key
from appliance.front.pipeline.body import read_object
from appliance.front.pipeline.request import Request
from appliance.front.pipeline.response import Response, json_response
from appliance.front.pipeline.route import Route
from appliance.front.pipeline.sse import HEARTBEAT, SSE_HEADERS, render_error_event
from appliance.front.ui.feed import Feed
from appliance.front.ui.files import INDEX, UiFiles
from appliance.front.ui.history import History
from appliance.front.ui.sessions import UiTokens

POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "font-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
SAFE: Final = [
    ("Content-Security-Policy", POLICY),
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "no-referrer"),
    ("Cross-Origin-Opener-Policy", "same-origin"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
]
MAX_KEY_CHARS: Final = 4096
TRIES, TRIES_S = 10, 60.0  # of wrong keys, from one address
MAX_PEERS: Final = 1000
LookUp = Callable[[Access, dict[str, str], str], Awaitable[None]]


class UiHandlers:
    """The handlers of the web UI.

    Args:
        files: What browsers load.
        tokens: Stand for keys.
        feed: What pages follow.
        history: The last hour.
        look_up: Raises where a caller (headers, address) may not call addresses of a level; it may have to be
            looked up first.
        knows_key: Whether a key is one of the settings.
        parts: Returns which parts there are: `{models, downloads, accounts, …}` → whether it is there.
        version: Of the appliance.
        now_s: Monotonic time.
    """

    def __init__(
        self,
        *,
        files: UiFiles,
        tokens: UiTokens,
        feed: Feed,
        history: History,
        look_up: LookUp,
        knows_key: Callable[[str], bool],
        parts: Callable[[], dict[str, bool]],
        version: str,
        now_s: Callable[[], float],
    ) -> None:
        self._files = files
        self._tokens = tokens
        self._feed = feed
        self._history = history
        self._look_up = look_up
        self._knows_key = knows_key
        self._parts = parts
        self._version = version
        self._now_s = now_s
        self._tries: dict[str, list[float]] = {}

    def routes(self) -> list[Route]:
        """Return this group's addresses."""
        read = partial(Route, ("GET",), access=Access.PUBLIC, is_open_while_draining=True)
        return [
            read("/ui", self.to_folder),
            read("/admin", self.to_folder),
            read("/ui/api/me", self.me),
            Route(
                ("POST", "DELETE"),
                "/ui/api/session",
                self.session,
                access=Access.PUBLIC,
                is_open_while_draining=True,
            ),
            read("/ui/api/feed", self.follow, access=Access.CLIENT),
            read("/ui/api/history", self.hour, access=Access.CLIENT),
            read("/ui/{file:.*}", self.file),
        ]

    # ---- files

    async def to_folder(self, request: Request) -> Response:
        """Lead to the web UI."""
        return Response(303, content_type="text/html", headers=[("Location", "ui/"), *SAFE])

    async def file(self, request: Request) -> Response:
        """Return a file of the web UI; without a name its page."""
        return await self._file(request, request.params["file"] or INDEX)

    async def _file(self, request: Request, path: str) -> Response:
        request.has_log_line = False  # a page loads a dozen
        if not self._files.is_loaded:
            await asyncio.to_thread(self._files.load)
        found = self._files.get(path)
        if found is None:
            raise NotFound(f"There is no file {path[:100]!r} of the web UI. It begins at /ui/.")
        headers = [("Cache-Control", "no-cache"), ("ETag", found.etag), ("Vary", "Accept-Encoding"), *SAFE]
        if found.etag in request.headers.get("if-none-match", ""):
            return Response(304, content_type=found.content_type, headers=headers)
        body = found.body
        if "gzip" in request.headers.get("accept-encoding", ""):
            body = found.packed
            headers.append(("Content-Encoding", "gzip"))
        return Response(body=body, content_type=found.content_type, headers=headers)

    # ---- who is there

    async def me(self, request: Request) -> Response:
        """Show what the caller may do here, and which parts there are.

        Returns:
            `{role, needs, parts, version}`: role is `operator`, `client` or `none`; needs says how to get
            further: `nothing`, `key`, `login` or `operator_key`. The version is for callers with a role.
        """
        request.has_log_line = False
        role = await self._role(request.headers, request.peer)
        parts = self._parts()
        shown: dict[str, Any] = {
            "role": role,
            "needs": self._needs(role, request),
            "accounts": parts["accounts"],
        }
        if role != "none":
            shown |= {"version": self._version, "parts": parts}
        return json_response(shown)

    async def _role(self, headers: dict[str, str], peer: str) -> str:
        for role, access in (("operator", Access.OPERATOR), ("client", Access.CLIENT)):
            try:
                await self._look_up(access, headers, peer)
            except ApplianceError:
                continue
            return role
        return "none"

    def _needs(self, role: str, request: Request) -> str:
        """Say how the caller gets further.

        1. an operator                             → nothing more is needed
        2. there are accounts                      → sign in
        3. without a key: a client                 → not on this machine, and no key for operators is set
        4. otherwise                               → a key
        """
        if role == "operator":  # 1
            return "nothing"
        if self._parts()["accounts"]:  # 2
            return "login"
        if role == "client" and not read_key(request.headers):  # 3
            return "operator_key"
        return "key"  # 4

    async def session(self, request: Request) -> Response:
        """Exchange a key for a token: `{key}` → `{token, role, expires_at_s}`; DELETE ends the token sent.

        The token is sent as the key would be, is valid for twelve hours, and ends with the key or a restart.
        """
        if request.method == "DELETE":
            self._tokens.end(read_key(request.headers))
            return json_response({"ended": True})
        key = _key_of(read_object(request.body))
        if self._parts()["accounts"]:
            raise Invalid("There are accounts here: sign in with e-mail and password.", code="use_login")
        self._refuse_many_tries(request.peer)
        if key.startswith(TOKEN_PREFIX) or not self._knows_key(key):
            self._tries.setdefault(request.peer, []).append(self._now_s())
            raise Unauthenticated("Unknown API key.")
        token, ends_s = self._tokens.issue(key)
        role = await self._role({"authorization": f"Bearer {token}"}, request.peer)
        return json_response({"token": token, "role": role, "expires_at_s": ends_s})

    def _refuse_many_tries(self, peer: str) -> None:
        """Refuse an address that sent too many wrong keys.

        Raises:
            Exhausted: It has to wait.
        """
        now_s = self._now_s()
        if len(self._tries) > MAX_PEERS:
            self._tries.clear()
        tries = [at_s for at_s in self._tries.get(peer, ()) if now_s - at_s < TRIES_S]
        if not tries:
            self._tries.pop(peer, None)
            return
        self._tries[peer] = tries
        if len(tries) >= TRIES:
            wait_s = TRIES_S - (now_s - tries[0])
            raise Exhausted(
                f"Too many wrong keys from this address. Try again in {max(1, ceil(wait_s))} s.",
                retry_after_s=wait_s,
            )

    # ---- what happens

    async def follow(self, request: Request) -> Response:
        """Follow what happens, as server-sent events: each topic's state, and again when it has changed.

        status, models, memory, load       for all who may use models
        backends, requests                 for operators

        The last event is `bye`.
        """
        role_of = partial(self._role, request.headers, request.peer)
        return Response(
            content_type="text/event-stream",
            headers=SSE_HEADERS,
            pieces=GeneratedStream(_begun(self._feed.stream(role_of))),
            on_error=render_error_event,
            heartbeat=HEARTBEAT,
        )

    async def hour(self, request: Request) -> Response:
        """Show the last hour: samples of ten seconds, and what became of models.

        Returns:
            `{every_s, samples: [{at_s, requests, errors, tokens, running, queued, backends}], marks: [{at_s,
            model, status}]}`; rates are per second.
        """
        request.has_log_line = False
        return json_response(self._history.as_dict())


async def _begun(events: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    """Yield events behind a comment, which sends the head at once."""
    yield HEARTBEAT
    try:
        async for event in events:
            yield event
    finally:
        await events.aclose()


def _key_of(body: dict[str, Any]) -> str:
    """Return the key of a sign-in.

    Raises:
        Invalid: There is none.
    """
    key = body.get("key")
    if not isinstance(key, str) or not key.strip() or len(key) > MAX_KEY_CHARS:
        raise Invalid("`key` must be the API key, as text.", param="key")
    return key.strip()
