"""POST /v1/tickets: a short-lived ticket for a browser's EventSource or WebSocket, which send no key.

What a ticket is: pipeline/access_tickets.py.
"""

from collections.abc import Callable

from appliance.base.errors import ApplianceError, Invalid
from appliance.front.pipeline.access import Access, read_key
from appliance.front.pipeline.access_tickets import PARAMETER, TTL_S, AccessTickets
from appliance.front.pipeline.body import check_types, read_object
from appliance.front.pipeline.request import Request
from appliance.front.pipeline.response import Response, json_response
from appliance.front.pipeline.route import Route

KEY_HEADERS = ("authorization", "x-api-key")
MAX_PATH_CHARS = 2048


class TicketHandlers:
    """The handler of /v1/tickets.

    Args:
        tickets: Keeps the tickets.
        find_access: Returns who may open an address that takes tickets; None = it takes none.
        check: Raises unless a caller (headers, address) has an access.
    """

    def __init__(
        self,
        tickets: AccessTickets,
        *,
        find_access: Callable[[str], Access | None],
        check: Callable[[Access, dict[str, str], str], None],
    ) -> None:
        self._tickets = tickets
        self._find_access = find_access
        self._check = check

    def routes(self) -> list[Route]:
        """Return this group's addresses."""
        return [Route(("POST",), "/v1/tickets", self.create)]

    async def create(self, request: Request) -> Response:
        """Get a ticket for one event stream or WebSocket: `{path}`; good for one request, within 30 seconds.

        Returns:
            `{ticket, parameter, path, url, expires_in_s}`; `url` is the path with the ticket in its query.

        Raises:
            Invalid: The address takes no tickets.
            Unauthenticated, Forbidden: The caller's key does not open the address.
            Exhausted: There are too many unused tickets.
        """
        body = read_object(request.body)
        check_types(body, {"path": str})
        path = body.get("path")
        if not path:
            raise Invalid(
                '`path` is required: the address to open, such as "/v1/models/status/stream".',
                param="path",
                code="missing_required_parameter",
            )
        access = self._find_access(path) if _is_path(path) else None
        if access is None:
            raise Invalid(
                f"{path[:100]!r} takes no ticket. Tickets are for the event streams of GET addresses and for "
                "connections to a backend that switch protocols (WebSocket). Give the path alone, without "
                "host and query; at any other address send the key in a header.",
                param="path",
                code="invalid_value",
            )
        ticket = self._tickets.issue(path, self._key_for(access, request))
        response = json_response(
            {
                "ticket": ticket,
                "parameter": PARAMETER,
                "path": path,
                "url": f"{path}?{PARAMETER}={ticket}",
                "expires_in_s": TTL_S,
            }
        )
        response.headers = [("Cache-Control", "no-store")]
        return response

    def _key_for(self, access: Access, request: Request) -> str:
        """Return the key that opens an address for the caller; "" = none is needed.

        A key that nothing asks for is not kept: it may be anything, and a caller who invents keys would take
        the places of others.

        Raises:
            Unauthenticated, Forbidden: The caller's key does not open the address.
        """
        bare = {name: value for name, value in request.headers.items() if name not in KEY_HEADERS}
        try:
            self._check(access, bare, request.peer)
        except ApplianceError:
            self._check(access, request.headers, request.peer)
            return read_key(request.headers)
        return ""


def _is_path(path: str) -> bool:
    """Whether this is a path as it stands in a request's first line."""
    is_text = path.isascii() and path.isprintable() and len(path) <= MAX_PATH_CHARS
    return is_text and path.startswith("/") and not set(path) & set("?# ")
