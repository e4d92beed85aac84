"""Tickets: a key's access to one address, for one request, in the query where a browser cannot send a header.

`EventSource` and `WebSocket` of browsers send no key. A page gets a ticket with its key, and adds it to the
address. The ticket stands for the key: whether that key opens the address is checked when it is used, so a
ticket never opens more, and a key that a reload removes takes its tickets with it. Only streams of events and
connections that switch protocols take tickets.
"""

import hashlib
import secrets
from dataclasses import dataclass, field
from urllib.parse import unquote_plus

from appliance.base.clock import Clock
from appliance.base.errors import Exhausted, Forbidden, Unauthenticated
from appliance.front.pipeline.request import Request

PARAMETER = "appliance_ticket"  # in the query; a name that no engine has
TTL_S = 30.0
MAX_TICKETS, MAX_PER_KEY = 256, 64  # that are not used and not expired
TICKET_BYTES = 32  # random ones


@dataclass(frozen=True, slots=True)
class AccessTicket:
    """What a ticket stands for.

    Attributes:
        path: The only address that it opens, as in the request's first line.
        key: The key of the caller that it was given to; "" = none was sent.
        expires_s: Monotonic.
    """

    path: str
    key: str = field(repr=False)
    expires_s: float


class AccessTickets:
    """The tickets that can be used. Kept by their digests, in the order in which they expire."""

    def __init__(self, *, clock: Clock) -> None:
        self._clock = clock
        self._tickets: dict[bytes, AccessTicket] = {}

    def __len__(self) -> int:
        """Return how many are kept."""
        return len(self._tickets)

    def issue(self, path: str, key: str) -> str:
        """Return a new ticket.

        Args:
            path: The address that it opens.
            key: The caller's; "" = none.

        Raises:
            Exhausted: There are too many, of this key or in all.
        """
        now_s = self._clock.monotonic_s()
        for digest, ticket in list(self._tickets.items()):
            if ticket.expires_s > now_s:
                break
            del self._tickets[digest]
        of_key = sum(ticket.key == key for ticket in self._tickets.values())
        if of_key >= MAX_PER_KEY or len(self._tickets) >= MAX_TICKETS:
            raise Exhausted(
                f"There are too many unused tickets: at most {MAX_PER_KEY} of one key, {MAX_TICKETS} in all. "
                f"Use them, or wait {TTL_S:g} s until they expire.",
                code="too_many_tickets",
                retry_after_s=TTL_S,
            )
        text = secrets.token_urlsafe(TICKET_BYTES)
        self._tickets[_digest(text)] = AccessTicket(path, key, now_s + TTL_S)
        return text

    def redeem(self, text: str, path: str) -> str:
        """Take a ticket; return the key that it stands for. It can be taken once.

        Raises:
            Unauthenticated: There is no such ticket, or no longer.
            Forbidden: It is for another address.
        """
        ticket = self._tickets.pop(_digest(text), None)
        if ticket is None or ticket.expires_s <= self._clock.monotonic_s():
            raise Unauthenticated(
                "This ticket is not known: it was used, or has expired. Get another one from /v1/tickets.",
                code="invalid_ticket",
            )
        if ticket.path != path:
            raise Forbidden(
                "This ticket is for another address. Get one for this address from /v1/tickets.",
                code="invalid_ticket",
            )
        return ticket.key

    def admit(self, request: Request, text: str, path: str) -> None:
        """Let a request with a ticket be as if it had been sent with the key that the ticket stands for.

        Raises:
            Unauthenticated, Forbidden: As `redeem` does.
        """
        if key := self.redeem(text, path):
            request.headers = {**request.headers, "authorization": f"Bearer {key}"}


def split_ticket(target: str) -> tuple[str, str]:
    """Take the ticket out of a path with a query.

    Returns:
        (the ticket, "" = there is none; the target without it, and otherwise unchanged)
    """
    path, _, query = target.partition("?")
    pieces = query.split("&")
    own = [piece for piece in pieces if unquote_plus(piece.partition("=")[0]) == PARAMETER]
    if not own:
        return "", target
    rest = "&".join(piece for piece in pieces if piece not in own)
    return unquote_plus(own[0].partition("=")[2]), f"{path}?{rest}" if rest else path


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()
