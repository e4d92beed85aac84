"""One address of the HTTP API, and what a group of handlers brings along: its own table of them."""

import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import cache
from inspect import getdoc
from typing import Protocol

from appliance.front.pipeline.access import Access
from appliance.front.pipeline.request import Request
from appliance.front.pipeline.response import Response

Handler = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class Route:
    """One address.

    Attributes:
        methods: In upper case.
        path: `{name}` is one piece, `{name:.+}` one or more, `{name:a|b}` one of these. The first route that
            fits is taken.
        handler: Answers; its docstring's first line is the address's `summary`.
        dialect: How errors are rendered: openai, ollama or detail.
        access: Who may call.
        is_hot: Served straight from the socket where the request allows it (server/fast_connection.py).
        is_open_while_draining: Answered while the appliance takes no new requests.
        is_ours: No engine has this address: a method that is not listed is refused here and does not go to a
            backend.
    """

    methods: tuple[str, ...]
    path: str
    handler: Handler
    dialect: str = "openai"
    access: Access = Access.CLIENT
    is_hot: bool = False
    is_open_while_draining: bool = False
    is_ours: bool = False

    @property
    def summary(self) -> str:
        """What the address does, in one line: the first line of its handler's docstring."""
        return (getdoc(self.handler) or "").partition("\n")[0]

    def fits(self, path: str) -> bool:
        """Whether `path` is this address."""
        return _compile(self.path).fullmatch(path) is not None


class RouteGroup(Protocol):
    """A group of handlers that belong together."""

    def routes(self) -> list[Route]:
        """Return the group's addresses; reads no state, so that they can be listed without an appliance."""
        ...


@cache
def _compile(pattern: str) -> re.Pattern[str]:
    """Turn a route's path into an expression: `{name}` is one piece, `{name:expression}` whatever fits it."""
    # Fixed text and expressions (None = one piece) alternate.
    pieces = re.split(r"\{\w+(?::([^{}]+))?\}", pattern)
    return re.compile(
        "".join(
            re.escape(piece or "") if number % 2 == 0 else f"(?:{piece or '[^/]+'})"
            for number, piece in enumerate(pieces)
        )
    )
