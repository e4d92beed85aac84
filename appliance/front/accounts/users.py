"""The addresses of the user itself: profile, export, deletion."""

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from appliance.accounts.users import Users
from appliance.front.accounts.bodies import read_fields
from appliance.front.accounts.caller import BASE, author_of, require_session, user_of
from appliance.front.pipeline.access import Access
from appliance.front.pipeline.request import Request
from appliance.front.pipeline.response import Response, json_response
from appliance.front.pipeline.route import Route


class UserHandlers:
    """The handlers of the user who calls.

    Args:
        users: Where users are kept.
        export: Returns all that is stored of a user (accounts/user_export.py).
    """

    def __init__(self, users: Users, *, export: Callable[[str], Awaitable[dict[str, Any]]]) -> None:
        self._users = users
        self._export = export

    def routes(self) -> list[Route]:
        """Return this group's addresses."""
        own = partial(Route, dialect="market", access=Access.ACCOUNT, scope="billing")
        return [
            own(("GET",), f"{BASE}/user", self.user),
            own(("DELETE",), f"{BASE}/user", self.delete, scope=""),  # it refuses API keys
            own(("GET",), f"{BASE}/user/export", self.export),
        ]

    async def user(self, request: Request) -> Response:
        """Show the user who calls: `{user}`."""
        user = await self._users.get(user_of(request).id)
        return json_response({"user": user.to_json()})

    async def export(self, request: Request) -> Response:
        """Return all that is stored of the user who calls, without keys and passwords.

        Returns:
            `{user, api_keys, sessions, usage_quota, wallet, usage, credits, audit, gpu_usage, transactions,
            exported_at}`.
        """
        response = json_response(await self._export(user_of(request).id))
        response.headers.append(("Cache-Control", "no-store"))
        return response

    async def delete(self, request: Request) -> Response:
        """Delete the user who calls; it cannot be undone.

        What tells who it was is removed, its keys and sessions end, its credits lapse. Rows of usage and
        money stay, under an id.
        """
        actor = require_session(request, what="delete its user")
        assert actor.user is not None
        read_fields(request, (), is_optional=True)
        await self._users.delete(actor.user.id, author=author_of(request))
        return json_response({"message": "User deleted", "id": actor.user.id})
