"""One address of the HTTP API, and the protocol of a group of handlers with its table of addresses."""

import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import cache
from inspect import getdoc
from typing import Protocol

from appliance.front.pipeline.access import Access
from appliance.front.pipeline.request import Request
from appliance.front.pipeline.response import Response
from appliance.front.pipeline.sockets import AcceptSocket

Handler = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class Route:
    """One address.

    Attributes:
        methods: In upper case; where GET is served, HEAD is too, and OPTIONS at every address.
        path: `{name}` is one piece, `{name:.+}` one or more, `{name:a|b}` one of these. The first route that
            matches is taken.
        handler: Serves the address; its docstring's first line is the address's `summary`.
        dialect: How errors are rendered: openai, anthropic, ollama or detail.
        access: Who may call.
        scope: Which scope an API key of a user needs; with ACCOUNTS=1 only.
        is_hot: Served by the fast connection where the request allows it (server/fast_connection.py).
        is_open_while_draining: Served also while the appliance takes no new requests.
        socket: Serves WebSocket connections at this address; None = there are none. It decides who may open
            one, after the level of access.
        takes_ticket: A browser's EventSource may open it by a ticket in the query (access_tickets.py).
    """

    methods: tuple[str, ...]
    path: str
    handler: Handler
    dialect: str = "openai"
    access: Access = Access.CLIENT
    scope: str = "inference"
    is_hot: bool = False
    is_open_while_draining: bool = False
    takes_ticket: bool = False
    socket: AcceptSocket | None = None

    @property
    def summary(self) -> str:
        """What the address does, in one line: the first line of its handler's docstring."""
        return (getdoc(self.handler) or "").partition("\n")[0]

    def serves(self, method: str) -> bool:
        """Whether requests with this method get to the handler: HEAD does where GET does."""
        return ("GET" if method == "HEAD" and "HEAD" not in self.methods else method) in self.methods

    def fits(self, path: str) -> bool:
        """Whether `path` is this address."""
        return _compile(self.path).fullmatch(path) is not None

    def match(self, path: str) -> dict[str, str] | None:
        """Return the parts of `path` by their names; None = it is not this address."""
        found = _compile(self.path).fullmatch(path)
        return found.groupdict() if found is not None else None


class RouteGroup(Protocol):
    """A group of handlers that belong together."""

    def routes(self) -> list[Route]:
        """Return the group's addresses; reads no state, so that they can be listed without an appliance."""
        ...


@cache
def _compile(pattern: str) -> re.Pattern[str]:
    """Compile a route's path: `{name}` matches one piece, `{name:expression}` the expression."""
    # Fixed text, a name and its expression (None = one piece) alternate.
    pieces = re.split(r"\{(\w+)(?::([^{}]+))?\}", pattern)
    compiled = re.escape(pieces[0])
    for name, expression, text in zip(pieces[1::3], pieces[2::3], pieces[3::3], strict=True):
        compiled += f"(?P<{name}>{expression or '[^/]+'}){re.escape(text)}"
    return re.compile(compiled)
