"""The addresses of registration, login, sessions and passwords.

For compatibility, see docs/compatibility.md; refresh, logout, sessions and the password are our own.
"""

from functools import partial
from typing import Any

from appliance.accounts.callers import credentials
from appliance.accounts.sessions import Sessions, session_to_json
from appliance.accounts.tokens import AccessTokens, is_access_token_form
from appliance.accounts.users import Users
from appliance.base.errors import ApplianceError, Unauthenticated
from appliance.front.accounts.bodies import flag_of, read_fields
from appliance.front.accounts.caller import BASE, author_of, id_of, require_session
from appliance.front.pipeline.access import Access
from appliance.front.pipeline.request import Request
from appliance.front.pipeline.response import Response, json_response
from appliance.front.pipeline.route import Route


class AuthHandlers:
    """The handlers of logging in and out.

    Args:
        users: Who can log in.
        sessions: The logins.
        tokens: Verifies the access token of a logout.
    """

    def __init__(self, users: Users, sessions: Sessions, tokens: AccessTokens) -> None:
        self._users = users
        self._sessions = sessions
        self._tokens = tokens

    def routes(self) -> list[Route]:
        """Return this group's addresses."""
        public = partial(Route, ("POST",), dialect="market", access=Access.PUBLIC, scope="")
        own = partial(Route, dialect="market", access=Access.ACCOUNT, scope="")  # handlers refuse API keys
        return [
            public(f"{BASE}/auth/register", self.register),
            public(f"{BASE}/auth/login", self.login),
            public(f"{BASE}/auth/refresh", self.refresh),
            public(f"{BASE}/auth/logout", self.logout),
            own(("POST",), f"{BASE}/auth/password", self.password),
            own(("GET",), f"{BASE}/auth/sessions", self.sessions),
            own(("DELETE",), f"{BASE}/auth/sessions", self.end_sessions),
            own(("DELETE",), f"{BASE}/auth/sessions/{{id}}", self.end_session),
        ]

    async def register(self, request: Request) -> Response:
        """Register a user: `{email, password, name}`; 201 with `{user}`.

        Where REGISTRATION is off it is 403 `registration_closed`. An address that is taken is 409
        `email_taken`.
        """
        names = ("email", "password", "name")
        body = read_fields(request, names, needed=names)
        user = await self._users.register(body["email"], body["password"], body["name"], peer=request.peer)
        return json_response({"user": user.to_json()}, 201)

    async def login(self, request: Request) -> Response:
        """Log in: `{email, password}`; returns `{user, tokens: {access_token, refresh_token, expires_at}}`.

        After 5 tries in a minute for one e-mail address, or 20 from one network address, it is 429.
        """
        names = ("email", "password")
        body = read_fields(request, names, needed=names)
        user, tokens = await self._users.login(
            body["email"],
            body["password"],
            peer=request.peer,
            user_agent=request.headers.get("user-agent", ""),
        )
        return _no_store({"user": user.to_json(), "tokens": tokens.to_json()})

    async def refresh(self, request: Request) -> Response:
        """Replace a refresh token, and get a new access token: `{refresh_token}`; returns `{tokens}`.

        A refresh token works once; within REFRESH_GRACE_S it gives the same successor again. Used later, it
        ends the session: 401 `refresh_reused`.
        """
        body = read_fields(request, ("refresh_token",), needed=("refresh_token",))
        _, tokens = await self._sessions.refresh(body["refresh_token"])
        return _no_store({"tokens": tokens.to_json()})

    async def logout(self, request: Request) -> Response:
        """End the session of the access token, or of `{refresh_token}`; with `{all: true}` all of its user.

        Returns:
            `{message, ended}`; a session that had ended before counts as 0.
        """
        body = read_fields(request, ("refresh_token", "all"), is_optional=True)
        is_all = flag_of(body, "all")
        user_id, session_id = await self._session_of(request, body.get("refresh_token"))
        if not await self._sessions.is_live(user_id, session_id):
            if is_all:
                raise Unauthenticated("The session has ended. Log in again.", code="session_ended")
            return json_response({"message": "Logged out", "ended": 0})
        if is_all:
            ended = await self._sessions.end_all(user_id)
        else:
            await self._sessions.end_one(user_id, session_id)
            ended = 1
        return json_response({"message": "Logged out", "ended": ended})

    async def _session_of(self, request: Request, refresh_token: object) -> tuple[str, str]:
        """Return the user and the session of a logout.

        1. a refresh token in the body     → its session
        2. an access token                 → its session
        3. neither                         → 401

        Raises:
            Unauthenticated: There is no token, or none of ours.
        """
        if refresh_token is not None:  # 1
            row = await self._sessions.find_by_refresh_token(refresh_token)
            return row.user_id, row.id
        failure: ApplianceError | None = None
        for text in filter(is_access_token_form, credentials(request.headers)):  # 2
            try:
                claims = self._tokens.verify(text)
            except ApplianceError as error:
                failure = error
                continue
            return claims.user_id, claims.session_id
        if failure is not None:
            raise failure
        raise Unauthenticated(  # 3
            "There is no session to end. Send the access token as `Authorization: Bearer TOKEN`, or "
            "`refresh_token` in the body.",
            code="token_required",
        )

    async def password(self, request: Request) -> Response:
        """Change one's password: `{old_password, new_password}`; all other sessions end."""
        actor = require_session(request, what="change the password")
        assert actor.user is not None
        names = ("old_password", "new_password")
        body = read_fields(request, names, needed=names)
        await self._users.change_password(
            actor.user.id,
            body["old_password"],
            body["new_password"],
            author=author_of(request),
            session_id=actor.session_id,
        )
        return json_response({"message": "Password changed"})

    async def sessions(self, request: Request) -> Response:
        """List one's sessions, the newest first: `{sessions: [session], count}`."""
        actor = require_session(request, what="see sessions")
        assert actor.user is not None
        rows = await self._sessions.of_user(actor.user.id)
        shown = [session_to_json(row, current=actor.session_id) for row in rows]
        return json_response({"sessions": shown, "count": len(shown)})

    async def end_sessions(self, request: Request) -> Response:
        """End all of one's sessions but the one that asks: `{message, ended}`."""
        actor = require_session(request, what="end sessions")
        assert actor.user is not None
        ended = await self._sessions.end_all(actor.user.id, but=actor.session_id)
        return json_response({"message": "Sessions ended", "ended": ended})

    async def end_session(self, request: Request) -> Response:
        """End one of one's sessions, also the one that asks: `{message, id}`."""
        actor = require_session(request, what="end sessions")
        assert actor.user is not None
        session_id = id_of(request, what="session", code="session_unknown")
        await self._sessions.end_one(actor.user.id, session_id)
        return json_response({"message": "Session ended", "id": session_id})


def _no_store(value: dict[str, Any]) -> Response:
    """Return a response with secrets, which nothing on the way may keep."""
    response = json_response(value)
    response.headers.append(("Cache-Control", "no-store"))
    return response
