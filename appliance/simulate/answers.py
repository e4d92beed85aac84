"""What a service answers or refuses, and the table of its addresses."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from aiohttp import web


@dataclass(slots=True)
class TwinRequest:
    """One request as a handler gets it.

    Attributes:
        route: The name of its row in the table.
        params: What the path's placeholders matched.
        query: The query; of a name that is repeated the last value.
        body: The parsed JSON object, or the fields of a form; {} = none.
        value: The parsed JSON, also where it is no object; None = none.
        data: The body as it came.
        raw: aiohttp's request.
    """

    route: str
    params: Mapping[str, str]
    query: Mapping[str, str]
    body: dict[str, Any]
    value: Any
    data: bytes
    raw: web.Request


@dataclass(slots=True)
class TwinAnswer:
    """An answer: JSON, unless `text` is given.

    Attributes:
        stream: Takes over instead: it writes the answer itself.
    """

    body: Any = None
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    text: str | None = None
    stream: Callable[[web.Request], Awaitable[web.StreamResponse]] | None = None


class TwinRefusal(Exception):
    """A service refuses a request.

    Args:
        status: The HTTP status.
        body: In the service's own form.
        headers: More headers.
    """

    def __init__(self, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
        super().__init__(f"{status}: {body}")
        self.answer = TwinAnswer(body, status, headers or {})


def is_simulated_key(header: str, *, prefix: str = "") -> bool:
    """Whether a header has a key that says that it is simulated: a real one never works at a stand-in."""
    return header.startswith(prefix) and "simulated" in header


Handler = Callable[[TwinRequest], Awaitable[TwinAnswer]]


@dataclass(frozen=True, slots=True)
class TwinRoute:
    """One address of a service; contracts/ has the same table.

    Attributes:
        name: What `POST /_fault` calls it; several addresses may share one.
        is_open: It needs no key.
    """

    name: str
    method: str
    path: str
    handler: Handler
    is_open: bool = False


class TwinService(Protocol):
    """One service of the twin.

    Attributes:
        name: What `POST /_fault` calls it: `vast`.
        calls: More names that a fault can have as its route, besides those of `routes`.
    """

    name: str
    calls: tuple[str, ...]

    def routes(self) -> list[TwinRoute]:
        """Return its addresses."""
        ...

    def check_key(self, headers: Mapping[str, str]) -> None:
        """Raise TwinRefusal where the key is missing or wrong."""
        ...

    def error_body(self, status: int, code: str, text: str) -> Any:
        """Return an error in the service's own form."""
        ...

    def url(self, origin: str) -> str:
        """Return the address to configure, of a service that listens at `http://host:port`."""
        ...

    def environ(self, origin: str) -> dict[str, str]:
        """Return the variables with which the appliance uses it there."""
        ...

    def settle(self) -> None:
        """Bring it up to the present time."""
        ...

    def truth(self) -> dict[str, Any]:
        """Return what really is, ready for JSON."""
        ...
