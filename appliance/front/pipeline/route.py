"""One address of the HTTP API: methods, path, handler, access level and error dialect."""

import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import cache

from appliance.front.pipeline.access import Access
from appliance.front.pipeline.request import Request
from appliance.front.pipeline.response import Response

Handler = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class Route:
    """One address.

    methods  in upper case; path: `{name}` one piece, `{name:.+}` one or more, `{name:a|b}` one of these; the first that fits is taken
    dialect  openai | ollama | detail: how errors are said
    is_hot   served straight from the socket where the request allows it (see lane.py)
    is_ours  no engine has this address: a method that we have not is refused there, and does not go through
    """

    methods: tuple[str, ...]
    path: str
    handler: Handler
    dialect: str = "openai"
    access: Access = Access.CLIENT
    is_hot: bool = False
    is_open_while_draining: bool = False
    is_ours: bool = False

    def fits(self, path: str) -> bool:
        """Whether `path` is this address."""
        return _shape(self.path).fullmatch(path) is not None


@cache
def _shape(pattern: str) -> re.Pattern[str]:
    """Give a route's path as an expression: `{name}` is one piece, `{name:expression}` whatever fits it."""
    pieces = re.split(
        r"\{\w+(?::([^{}]+))?\}", pattern
    )  # fixed text and expressions (None = one piece) take turns
    return re.compile(
        "".join(
            re.escape(piece or "") if number % 2 == 0 else f"(?:{piece or '[^/]+'})"
            for number, piece in enumerate(pieces)
        )
    )
