"""Admits callers where there are accounts: keys of the settings, API keys of users, sessions."""

from collections.abc import Iterable
from typing import Final

from appliance.accounts.actor import Actor
from appliance.accounts.callers import Callers
from appliance.accounts.directory import Directory
from appliance.accounts.snapshot import KnownKey
from appliance.front.pipeline.access import Access, CallerNotInMemory, key_name
from appliance.front.settings import FrontSettings, split_keys
from appliance.front.spending import CallerBilling, Spending

RATE_HEADERS: Final = (
    *(f"X-RateLimit-{word}" for word in ("Limit", "Remaining", "Reset")),
    *(f"x-ratelimit-{w}-{what}" for what in ("requests", "tokens") for w in ("limit", "remaining", "reset")),
)


class UserGate:
    """What the pipeline asks about callers (see `AccountGate`).

    Args:
        callers: Admit by what is in memory.
        directory: Looks up what is not.
        spending: Bills the requests of users.
        limited_windows: The spans of time in which spending is limited: `5min` … `72h`.
    """

    def __init__(
        self,
        callers: Callers,
        directory: Directory,
        spending: Spending,
        *,
        limited_windows: Iterable[str] = (),
    ) -> None:
        self._callers = callers
        self._directory = directory
        self._spending = spending
        shown = [f"X-GuardRails-{name}" for name in limited_windows]
        guardrails = ["X-GuardRails-Enabled", "X-GuardRails-Exceeded", *shown] if shown else []
        self.exposed_headers = (*RATE_HEADERS, *guardrails)

    def apply(self, settings: FrontSettings) -> None:
        """Take the keys of the settings."""
        self._callers.apply(
            client_keys=split_keys(settings.appliance_api_keys),
            operator_keys=split_keys(settings.operator_api_keys),
            stay_local_keys=split_keys(settings.stay_local_api_keys),
        )

    def admit(self, access: Access, headers: dict[str, str], peer: str, *, scope: str = "inference") -> Actor:
        """Admit a request (see AccountGate)."""
        actor = self._callers.admit(access.value, headers, peer, scope=scope)
        if actor is None:
            raise CallerNotInMemory
        return actor

    def key_of(self, actor: Actor, headers: dict[str, str]) -> KnownKey | None:
        """Return the key in memory by which a caller was admitted (see AccountGate)."""
        return self._callers.key_of(actor, headers)

    def admit_again(self, known: object) -> Actor | None:
        """Admit the same head once more (see AccountGate)."""
        if type(known) is KnownKey and self._callers.is_valid(known):
            return known.actor
        return None

    async def look_up(self, headers: dict[str, str]) -> None:
        """Look up the credentials that are not in memory (see AccountGate)."""
        await self._directory.look_up(headers, self._callers)

    def knows(self, headers: dict[str, str]) -> bool:
        """Whether the caller has a credential that is known."""
        return self._callers.knows(headers)

    def billing_of(self, actor: Actor, *, peer: str) -> CallerBilling | None:
        """Return who pays for a caller's requests (see AccountGate)."""
        return self._spending.billing_of(actor, peer=peer)

    def name_of(self, actor: Actor, headers: dict[str, str]) -> str:
        """Return how receipts name the caller's key: as without accounts; "" for a session."""
        return "" if actor.session_id else key_name(headers)
