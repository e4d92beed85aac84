"""The addresses of a user's API keys: made, listed, rotated, revoked.

For compatibility, see docs/compatibility.md; all but making a key is our own.
"""

from functools import partial
from typing import Any, Final

from appliance.accounts.actor import Actor, UserFacts, read_limits, read_models, read_scopes
from appliance.accounts.api_keys import NewKey, read_expiry_ms, read_grace_s, read_key_name
from appliance.accounts.issued_keys import IssuedKeys, KeyRequest, StoredKey, render_ms
from appliance.base.clock import Clock
from appliance.front.accounts.bodies import flag_of, read_fields
from appliance.front.accounts.caller import BASE, author_of, id_of, require_session, user_of
from appliance.front.pipeline.access import Access
from appliance.front.pipeline.request import Request
from appliance.front.pipeline.response import Response, json_response
from appliance.front.pipeline.route import Route

FIELDS: Final = ("name", "scopes", "models", "limits", "stay_local", "expires_at")
ONCE: Final = "This key is shown once. Keep it now."


class ApiKeyHandlers:
    """The handlers of API keys. A key can be made by a login only; an API key can replace or revoke itself.

    Args:
        keys: Where they are kept.
        clock: The time that expiry is compared with.
    """

    def __init__(self, keys: IssuedKeys, *, clock: Clock) -> None:
        self._keys = keys
        self._clock = clock

    def routes(self) -> list[Route]:
        """Return this group's addresses."""
        own = partial(Route, dialect="market", access=Access.ACCOUNT, scope="")
        return [
            own(("POST",), f"{BASE}/auth/apikey", self.create),
            own(("GET",), f"{BASE}/auth/apikey", self.keys, scope="billing"),
            own(("GET",), f"{BASE}/auth/apikey/{{id}}", self.key),
            own(("DELETE",), f"{BASE}/auth/apikey/{{id}}", self.revoke),
            own(("POST",), f"{BASE}/auth/apikey/{{id}}/rotate", self.rotate),
        ]

    async def create(self, request: Request) -> Response:
        """Make an API key: `{name, expires_at?, scopes?, models?, limits?, stay_local?}`; it is shown once.

        Returns:
            201 with `{api_key, message, id, prefix, expires_at, key}`; `key` as in the list. Without `scopes`
            it has all but `admin`.
        """
        require_session(request, what="make API keys")
        body = read_fields(request, FIELDS, needed=("name",))
        new, stored = await self._keys.create(user_of(request), self._wanted(body), author=author_of(request))
        return _shown_once(new, stored)

    def _wanted(self, body: dict[str, Any]) -> KeyRequest:
        """Return the key that a body asks for.

        Raises:
            Invalid: A field has a value that is not allowed.
        """
        return KeyRequest(
            name=read_key_name(body["name"]),
            scopes=read_scopes(body.get("scopes")),
            models=read_models(body.get("models")),
            limits=read_limits(body.get("limits")),
            stay_local=flag_of(body, "stay_local"),
            expires_at_ms=read_expiry_ms(body.get("expires_at"), self._clock.now_s()),
        )

    async def keys(self, request: Request) -> Response:
        """List one's API keys, revoked ones too: `{api_keys: [key], count}`; never the keys themselves."""
        stored = await self._keys.of_user(user_of(request).id)
        shown = [key.to_json() for key in stored]
        return json_response({"api_keys": shown, "count": len(shown)})

    async def key(self, request: Request) -> Response:
        """Show one of one's API keys: its name, scopes, limits and when it was used last."""
        user, key_id = self._own(request, what="see other API keys")
        return json_response((await self._keys.get(user.id, key_id)).to_json())

    async def revoke(self, request: Request) -> Response:
        """Revoke one of one's API keys, on all replicas: `{message, id, prefix}`."""
        user, key_id = self._own(request, what="revoke other API keys")
        key = await self._keys.revoke(user.id, key_id, author=author_of(request))
        return json_response({"message": "API key revoked", "id": key.id, "prefix": key.prefix})

    async def rotate(self, request: Request) -> Response:
        """Replace an API key by one of the same kind: `{grace_s?}`; for so long the old one works as well.

        Returns:
            201 with `{api_key, message, id, prefix, expires_at, key, replaces}`.
        """
        user, key_id = self._own(request, what="replace other API keys")
        body = read_fields(request, ("grace_s",), is_optional=True)
        grace_s = read_grace_s(body.get("grace_s"))
        new, stored = await self._keys.rotate(user, key_id, grace_s=grace_s, author=author_of(request))
        return _shown_once(new, stored, replaces=key_id)

    def _own(self, request: Request, *, what: str) -> tuple[UserFacts, str]:
        """Return the user, and the id of the key in the address, which the caller may act on.

        1. the API key that was sent     → yes, itself
        2. any other key of the user     → only by a login

        Raises:
            Forbidden: An API key was sent, and the address is of another one.
            NotFound: There is no such key.
        """
        user = user_of(request)
        key_id = id_of(request, what="API key", code="key_unknown")
        actor: Actor | None = request.actor
        is_itself = actor is not None and actor.key is not None and actor.key.id == key_id
        if not is_itself:
            require_session(request, what=what)
        return user, key_id


def _shown_once(new: NewKey, stored: StoredKey, *, replaces: str = "") -> Response:
    """Return the response that has a key's text."""
    shown: dict[str, Any] = {
        "api_key": new.text,
        "message": ONCE,
        "id": stored.id,
        "prefix": stored.prefix,
        "expires_at": render_ms(stored.expires_at_ms),
        "key": stored.to_json(),
    }
    if replaces:
        shown["replaces"] = replaces
    response = json_response(shown, 201)
    response.headers.append(("Cache-Control", "no-store"))
    return response
