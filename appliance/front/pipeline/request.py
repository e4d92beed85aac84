"""What a handler receives: one request, whichever server has read it. No aiohttp, no sockets."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, Self

from appliance.engines.outcome import Finish
from appliance.engines.receipts import Receipt
from appliance.engines.types import NO_OPTIONS, RequestOptions

if TYPE_CHECKING:  # loaded only with ACCOUNTS=1
    from appliance.accounts.actor import Actor


class RequestLifecycle(Protocol):
    """Counts running requests, and settles each of them once (pipeline.py)."""

    in_flight: int

    def settle(self, request: "Request") -> None:
        """Account for a request that has ended; it is no longer in flight."""


class KnownCaller:
    """What was decided about a caller, for its next requests with the same head on the same connection.

    Attributes:
        keys: The keys in force when it was decided, with accounts the key in memory (`AccountGate.key_of`)
            or the actor; None = nothing was decided yet.
        options: How its requests are routed.
        key: How receipts name its key.
    """

    __slots__ = ("key", "keys", "options")

    def __init__(self) -> None:
        self.keys: object = None
        self.key = ""
        self.options = NO_OPTIONS


@dataclass(slots=True)
class Request:
    """One request with its whole body.

    The server enters it as a context: leaving that settles the request in every case. The handler runs in a
    task that is cancelled when the client leaves.

    Attributes:
        path: The path, without the query.
        headers: Values by lower-case name, several of one name joined by commas.
        body: All bytes; b"" = none.
        peer: The caller's address, "unix" for a unix socket.
        id: The receipt's id.
        route: The label of the route in metrics and receipts.
        query: The raw query string.
        params: Parts of the path by name (`{model}`).
        began_s: Monotonic.
        first_byte_s: Monotonic; 0 = nothing was sent yet.
        options: How it is routed; set by `RequestPipeline.admit`.
        has_log_line: Whether the pipeline writes its line of the access log; False: its interface logs it.
        has_receipt: Whether a POST's receipt is kept; False: it is about an account. Set by `admit`.
        lifecycle: Counts and settles it; None = it is not accounted (tests).
        known_caller: Of the caller, where the connection has sent this head before; None = it has not.
        finish: How it ended, for the receipt: done, client_left, cut_off or error. Set by the server.
        sent_bytes: Of the response's body. Set by the server.
        events: Events of an engine that were streamed. Set by the server.
        actor: Who calls; None = there are no accounts, or the address is public. Set by `admit`.
    """

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    peer: str
    id: str
    receipt: Receipt
    route: str = ""
    query: str = ""
    params: dict[str, str] = field(default_factory=dict)
    began_s: float = 0.0
    first_byte_s: float = 0.0
    options: RequestOptions = NO_OPTIONS
    has_log_line: bool = True
    has_receipt: bool = True
    lifecycle: RequestLifecycle | None = None
    known_caller: KnownCaller | None = None
    finish: Finish = Finish.CLIENT_LEFT
    sent_bytes: int = 0
    events: int = 0
    actor: "Actor | None" = None

    def __enter__(self) -> Self:
        if self.lifecycle is not None:
            self.lifecycle.in_flight += 1
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if self.lifecycle is not None:
            self.lifecycle.settle(self)
