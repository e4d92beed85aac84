"""What a handler takes and gives, whichever server stands outside: hot handlers know neither aiohttp nor a socket."""

from dataclasses import dataclass, field

from appliance.engines.receipts import Receipt
from appliance.engines.types import NO_OPTIONS, RequestOptions


@dataclass(slots=True)
class Request:
    """One request, read whole.

    Takes   headers: lower-case names; body: all bytes (b"" if none); peer: address of the caller or "unix";
            query: the raw query string; params: parts of the path by name (`{model}`)
    The handler runs in a task that is cancelled when the client leaves.
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
    began_s: float = 0.0  # monotonic
    first_byte_s: float = 0.0  # monotonic; 0 = nothing was sent yet
    options: RequestOptions = NO_OPTIONS  # what its headers say about where and when; set at the desk
