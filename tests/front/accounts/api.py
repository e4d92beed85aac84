"""The addresses of accounts without a server: a request is admitted as the pipeline does it, and errors are rendered."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

from argon2 import PasswordHasher

from appliance.accounts.actor import Actor
from appliance.accounts.identity import Identity
from appliance.accounts.money import MoneyStore
from appliance.accounts.prices import Price
from appliance.accounts.settings import AccountSettings
from appliance.base import jsons
from appliance.base.errors import ApplianceError
from appliance.front.accounts.groups import build_groups
from appliance.front.pipeline.errors import error_body, status_of
from appliance.front.pipeline.route import Route, RouteGroup
from tests.accounts.parts import AUTHOR, PASSWORD
from tests.front.requests import make_request

BASE = "/api/v1"
PEER = "10.0.0.1"


@dataclass
class Answer:
    """A response."""

    status: int
    json: Any
    headers: dict[str, str]

    @property
    def code(self) -> tuple[int, str]:
        return self.status, self.json["code"]


@dataclass
class Login:
    """A user who is logged in."""

    id: str
    email: str
    access_token: str
    refresh_token: str


class AccountsApi:
    """Calls the handlers of groups."""

    def __init__(self, identity: Identity, store: MoneyStore, *groups: RouteGroup) -> None:
        self.identity = identity
        self.store = store
        self.routes = [route for group in groups for route in group.routes()]

    async def call(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        login: Login | None = None,
        key: str = "",
        headers: dict[str, str] | None = None,
        peer: str = PEER,
    ) -> Answer:
        """Call an address below /api/v1. `path` may have a query; bytes are sent as they are."""
        plain, _, query = path.partition("?")
        sent = dict(headers or {})
        if login is not None:
            sent["authorization"] = f"Bearer {login.access_token}"
        if key:
            sent["x-api-key"] = key
        route, params = self._find(method, BASE + plain)
        request = make_request(BASE + plain, body, method=method, query=query, headers=sent, **params)
        request.peer = peer
        try:
            request.actor = await self._admit(route, sent, peer)
            response = await route.handler(request)
        except ApplianceError as error:
            return Answer(status_of(error), jsons.loads(error_body(error, route.dialect, request.id)), {})
        return Answer(response.status, jsons.loads(response.body), dict(response.headers))

    def _find(self, method: str, path: str) -> tuple[Route, dict[str, str]]:
        for route in self.routes:
            if route.serves(method) and (params := route.match(path)) is not None:
                return route, params
        raise LookupError(f"{method} {path}")

    async def _admit(self, route: Route, headers: dict[str, str], peer: str) -> Actor | None:
        admit = partial(self.identity.callers.admit, route.access.value, headers, peer, scope=route.scope)
        actor = admit()
        if actor is None:
            await self.identity.directory.look_up(headers, self.identity.callers)
            actor = admit()
        return actor

    async def log_in(self, email: str = "ada@example.org", *, is_admin: bool = False) -> Login:
        """Make a user who is logged in."""
        await self.identity.users.create(email, PASSWORD, "Ada", author=AUTHOR, is_admin=is_admin)
        return await self.log_in_again(email)

    async def log_in_again(self, email: str = "ada@example.org") -> Login:
        """Log a user in."""
        user, tokens = await self.identity.users.login(email, PASSWORD, peer=PEER, user_agent="test")
        return Login(user.id, user.email, tokens.access_token, tokens.refresh_token)


def build_api(
    identity: Identity, settings: AccountSettings, *, file_prices: Callable[[], Iterable[Price]] = tuple
) -> AccountsApi:
    """Build all groups; passwords are hashed quickly."""
    identity.passwords._hasher = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)
    store = MoneyStore(settings, identity.database, identity.changes, clock=identity.clock, replica_id="r1")
    identity.users._open_wallet = store.wallets.open
    return AccountsApi(identity, store, *build_groups(identity, store, file_prices=file_prices))
