"""Who calls: credentials to an `Actor`. They are tried in order; the first one that is known counts.

1. `X-API-Key`
2. `Authorization: Bearer`

Each is a key of the settings, a user's API key, or an access token (it has two dots). Nothing here waits:
what is not in memory is looked up by `directory`, after which the caller is admitted again.
"""

from collections.abc import Callable, Iterable
from typing import Final

from appliance.accounts.actor import (
    ANYBODY,
    Actor,
    Level,
    UserFacts,
    check_access,
)
from appliance.accounts.api_keys import digest_of, is_key_form
from appliance.accounts.snapshot import KnownKey, Snapshot
from appliance.accounts.tokens import AccessTokens, is_access_token_form
from appliance.base.clock import Clock
from appliance.base.errors import ApplianceError, Forbidden, Unauthenticated, Unavailable

RETRY_AFTER_S: Final = 1.0
LOOPBACK: Final = Actor("operator")
CheckLoopback = Callable[[dict[str, str], str], None]


class Callers:
    """Admits requests.

    Args:
        snapshot: What is known of users and keys.
        tokens: Verifies access tokens.
        is_store_up: Says whether the database can be asked.
        check_loopback: Raises Forbidden unless a caller without a key may use operators' addresses; it is
            called only where the settings have no keys.
    """

    def __init__(
        self,
        snapshot: Snapshot,
        tokens: AccessTokens,
        *,
        clock: Clock,
        is_store_up: Callable[[], bool],
        check_loopback: CheckLoopback,
    ) -> None:
        self._snapshot = snapshot
        self._tokens = tokens
        self._now_s = clock.now_s
        self._is_store_up = is_store_up
        self._check_loopback = check_loopback
        self._static_keys: tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]] = ((), (), ())
        self._static: dict[bytes, Actor] = {}
        self._has_operator_keys = False
        self._static_user: UserFacts | None = None

    def apply(
        self, *, client_keys: Iterable[str], operator_keys: Iterable[str], stay_local_keys: Iterable[str]
    ) -> None:
        """Take the keys of the settings, at start and after a reload.

        Args:
            client_keys: APPLIANCE_API_KEYS.
            operator_keys: OPERATOR_API_KEYS.
            stay_local_keys: STAY_LOCAL_API_KEYS.
        """
        self._static_keys = (tuple(client_keys), tuple(operator_keys), tuple(stay_local_keys))
        self._make_static()

    def admit(
        self, level: Level, headers: dict[str, str], peer: str, *, scope: str = "inference"
    ) -> Actor | None:
        """Admit a request.

        1. public address                                      → anybody
        2. the first credential that is known                  → its actor, if it may call this level
        3. one that may be a key or token of a user            → None: look it up first
        4. none is known, no keys in the settings, operators'  → callers on this machine, as without accounts
        5. none is known, and the database is down             → 503: it might know them
        6. none is known                                       → 401

        Args:
            headers: By lower-case name.
            peer: The caller's address.
            scope: Which the address asks of API keys.

        Returns:
            The actor; None = await `directory.look_up(headers)`, and call this again.

        Raises:
            Unauthenticated: No credential, or none that is known and valid.
            Forbidden: The credential does not open this address.
            Unavailable: The database is down, and what is in memory does not suffice.
        """
        if level == "public":  # 1
            return ANYBODY
        if self._snapshot.static_user is not self._static_user:
            self._make_static()
        failure: ApplianceError | None = None
        texts = credentials(headers)
        for text in texts:
            try:
                actor = self._find(text)
            except ApplianceError as error:
                failure = failure or error
                continue
            if actor is not None:  # 2
                check_access(actor, level, scope, has_operator_keys=self._has_operator_keys)
                return actor
            if self.needs_look_up(text):  # 3
                return None
        return self._without_credential(level, headers, peer, failure=failure, is_any=bool(texts))

    def key_of(self, actor: Actor, headers: dict[str, str]) -> KnownKey | None:
        """Return the key in memory by which a caller was admitted; None = not by the only credential sent."""
        texts = credentials(headers)
        known = self._snapshot.keys.get(digest_of(texts[0])) if len(texts) == 1 else None
        return known if known is not None and known.actor is actor else None

    def is_valid(self, known: KnownKey) -> bool:
        """Whether `admit` would find the same key again: it was not changed, and has not expired."""
        snapshot, now_s = self._snapshot, self._now_s()
        if (
            now_s >= known.valid_until_s
            or now_s > snapshot.valid_until_s
            or snapshot.keys.get(known.digest) is not known
        ):
            return False
        known.was_used = True
        return True

    def knows(self, headers: dict[str, str]) -> bool:
        """Whether a caller has a credential that is known now, and so sees a public address's details."""
        for text in credentials(headers):
            try:
                if self._find(text) is not None:
                    return True
            except ApplianceError:
                continue
        return False

    def needs_look_up(self, text: str) -> bool:
        """Whether a credential that is not in memory may be known to the database, which can be asked."""
        if not self._is_store_up():
            return False
        if is_key_form(text):
            digest = digest_of(text)
            return digest not in self._snapshot.keys and not self._snapshot.is_unknown(digest)
        return self.unknown_user(text) is not None

    def unknown_user(self, text: str) -> str | None:
        """Return the user of a valid access token where this user is not in memory; None = otherwise."""
        if not is_access_token_form(text):
            return None
        try:
            claims = self._tokens.verify(text)
        except Unauthenticated:
            return None
        is_unknown = self._snapshot.is_unknown(digest_of(claims.user_id))
        return None if claims.user_id in self._snapshot.users or is_unknown else claims.user_id

    # ---- inside

    def _find(self, text: str) -> Actor | None:
        """Return whose credential it is; None = not in memory.

        Raises:
            Unauthenticated: It is known, and not valid any more.
            Unavailable: It is known, but only from long ago.
        """
        digest = digest_of(text)
        known = self._snapshot.keys.get(digest)
        if known is not None:
            now_s = self._now_s()
            if now_s >= known.valid_until_s or now_s > self._snapshot.valid_until_s:
                raise self._refusal(known, now_s)
            known.was_used = True
            return known.actor
        static = self._static.get(digest)
        if static is not None:
            return static
        return self._find_session(text, digest) if is_access_token_form(text) else None

    def _find_session(self, text: str, digest: bytes) -> Actor | None:
        claims = self._tokens.verify(text, digest)
        if claims.session_id in self._snapshot.ended:
            raise Unauthenticated("The session has ended. Log in again.", code="session_ended")
        user = self._snapshot.users.get(claims.user_id)
        if user is None:
            if self._snapshot.is_unknown(digest_of(claims.user_id)):
                raise Unauthenticated(
                    "The account of this access token no longer exists.", code="user_unknown"
                )
            return None
        if self._now_s() > self._snapshot.valid_until_s:
            raise store_unavailable()
        if not user.is_active:
            raise user_inactive()
        return self._snapshot.session_actor(user, claims.session_id)

    def _refusal(self, known: KnownKey, now_s: float) -> ApplianceError:
        """Return why a known key is not admitted."""
        if now_s > self._snapshot.valid_until_s:
            return store_unavailable()
        if known.actor.user is not None and not known.actor.user.is_active:
            return user_inactive()
        prefix = known.actor.key.prefix if known.actor.key is not None else ""
        return Unauthenticated(f"The API key {prefix} has expired. Make a new one.", code="api_key_expired")

    def _without_credential(
        self,
        level: Level,
        headers: dict[str, str],
        peer: str,
        *,
        failure: ApplianceError | None,
        is_any: bool,
    ) -> Actor:
        if level == "operator" and not self._static:  # 4
            try:
                self._check_loopback(headers, peer)
                return LOOPBACK
            except Forbidden:
                if not is_any:
                    raise
        if not is_any:
            raise Unauthenticated("No API key. Send it as `Authorization: Bearer KEY`.")
        if failure is not None:
            raise failure
        if not self._is_store_up():  # 5
            raise store_unavailable()
        raise Unauthenticated("Unknown API key.")  # 6

    def _make_static(self) -> None:
        """Make the actors of the settings' keys anew."""
        client, operator, stay_local = self._static_keys
        user = self._static_user = self._snapshot.static_user
        local = set(stay_local)
        limits_id = f"static:{user.id}" if user is not None else ""
        flow = user.id if user is not None else ""
        self._has_operator_keys = bool(operator)
        self._static = {
            digest_of(key): Actor("static", user, None, flow, limits_id, stay_local=key in local)
            for key in client
        }
        self._static |= {digest_of(key): Actor("operator", stay_local=key in local) for key in operator}


def credentials(headers: dict[str, str]) -> list[str]:
    """Return the credentials of a request in the order in which they count; none of them is empty."""
    found = []
    if "x-api-key" in headers and (text := headers["x-api-key"].strip()):
        found.append(text)
    if "authorization" in headers:
        scheme, _, value = headers["authorization"].partition(" ")
        if scheme.lower() == "bearer" and (text := value.strip()) and text not in found:
            found.append(text)
    return found


def store_unavailable() -> Unavailable:
    """Return the error for a caller whom only the database knows, while it is down."""
    return Unavailable(
        "The database of accounts cannot be reached, so this credential cannot be checked. "
        "Try again shortly.",
        code="store_unavailable",
        retry_after_s=RETRY_AFTER_S,
    )


def user_inactive() -> Unauthenticated:
    """Return the error for a user whom an administrator has switched off."""
    return Unauthenticated("user account is inactive", code="user_inactive")
