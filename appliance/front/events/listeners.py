"""Who may hear which topics of events: asked when a connection begins, and again while it lasts."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from appliance.base.errors import ApplianceError, Forbidden
from appliance.front.pipeline.access import Access, AccountGate, CallerNotInMemory

if TYPE_CHECKING:  # loaded only with ACCOUNTS=1
    from appliance.accounts.actor import Actor

# The scope that an API key needs for each topic; None = a login, whatever the key.
SCOPE_OF: Final = {
    "instances": "market",
    "offers": "market",
    "billing": "billing",
    "usage": "billing",
    "sessions": None,
}
SYSTEM: Final = "system"  # the topic of operators


@dataclass(frozen=True, slots=True)
class Listener:
    """Who hears events.

    Attributes:
        user_id: Whose events; None = no user's: an operator without an account.
        wallet_id: Of the user; "" = none.
        topics: Which ones.
        is_operator: Hears the topic `system`, too.
    """

    user_id: str | None
    wallet_id: str
    topics: frozenset[str]
    is_operator: bool

    @property
    def all_topics(self) -> frozenset[str]:
        """The user's topics and, of operators, `system`."""
        return self.topics | {SYSTEM} if self.is_operator else self.topics


async def find_listener(gate: AccountGate, headers: dict[str, str], peer: str) -> Listener:
    """Return who may hear what; looks up a credential that is not in memory.

    1. a user                  → the topics of the key's scopes; of a login all
    2. an operator             → `system`; an administrator's own topics beside it
    3. any other credential    → refused

    Args:
        gate: Admits callers.
        headers: By lower-case name; with the credential.
        peer: The caller's address.

    Raises:
        Unauthenticated: No credential, or none that is known and valid.
        Forbidden: The credential is no user's and no operator's.
        Unavailable: The database is down, and what is in memory does not suffice.
    """
    try:
        return _find(gate, headers, peer)
    except CallerNotInMemory:
        await gate.look_up(headers)
        return _find(gate, headers, peer)


def _find(gate: AccountGate, headers: dict[str, str], peer: str) -> Listener:
    is_operator = _is_operator(gate, headers, peer)
    try:
        actor = gate.admit(Access.ACCOUNT, headers, peer, scope="")  # 1
    except Forbidden:
        if not is_operator:
            raise  # 3
        return Listener(None, "", frozenset(), is_operator=True)  # 2
    user = actor.user
    assert user is not None
    return Listener(user.id, user.wallet_id, _topics_of(actor), is_operator)


def _topics_of(actor: "Actor") -> frozenset[str]:
    if actor.key is None:
        return frozenset(SCOPE_OF)
    scopes = actor.key.scopes
    return frozenset(topic for topic, scope in SCOPE_OF.items() if scope in scopes)


def _is_operator(gate: AccountGate, headers: dict[str, str], peer: str) -> bool:
    try:
        gate.admit(Access.OPERATOR, headers, peer, scope="admin")
    except CallerNotInMemory:
        raise
    except ApplianceError:
        return False
    return True
