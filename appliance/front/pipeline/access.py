"""Who may call: keys compared in constant time, and the three levels of access that an address can have."""

import hashlib
import hmac
from enum import Enum
from typing import TYPE_CHECKING, Protocol

from appliance.base.errors import Forbidden, Unauthenticated, Unavailable
from appliance.engines.types import Billing
from appliance.front.pipeline.origins import Origins, is_loopback
from appliance.front.settings import FrontSettings, split_keys

if TYPE_CHECKING:  # loaded only with ACCOUNTS=1
    from appliance.accounts.actor import Actor

TOKEN_PREFIX = "ui_"  # noqa: S105 - of tokens that stand for keys
FORWARDED = ("x-forwarded-for", "forwarded", "x-real-ip", "via")


class Access(Enum):
    """Who may call an address. Every address has a level."""

    PUBLIC = "public"  # health: every client that reaches the port
    CLIENT = "client"  # a client key, where keys are set; with ACCOUNTS=1 an API key or a session, too
    ACCOUNT = "account"  # a user: an API key of one or a session; only with ACCOUNTS=1
    OPERATOR = "operator"  # an operator key; without any key set, callers on loopback


class CallerNotInMemory(Unavailable):
    """Whether a credential is known has to be looked up first: `await AccountGate.look_up`, and try again."""

    default_code = "store_unavailable"

    def __init__(self) -> None:
        super().__init__("The credential is being looked up. Try again shortly.", retry_after_s=1.0)


class AccountGate(Protocol):
    """Admits callers by keys of the settings, API keys of users, and sessions (front/account_gate.py)."""

    @property
    def exposed_headers(self) -> tuple[str, ...]:
        """Header fields about limits, which web pages may read."""
        ...

    def apply(self, settings: FrontSettings) -> None:
        """Take settings that a reload may change: keys."""
        ...

    def admit(
        self, access: Access, headers: dict[str, str], peer: str, *, scope: str = "inference"
    ) -> "Actor":
        """Admit a request.

        Args:
            headers: By lower-case name.
            peer: The caller's address.
            scope: Which the address asks of API keys.

        Raises:
            CallerNotInMemory: It has to be looked up first.
            Unauthenticated: No credential, or none that is known.
            Forbidden: The caller does not have this level of access.
            Unavailable: The database is down, and what is in memory does not suffice.
        """
        ...

    def key_of(self, actor: "Actor", headers: dict[str, str]) -> object:
        """Return the key in memory by which a caller was admitted; None = by something else."""
        ...

    def admit_again(self, known: object) -> "Actor | None":
        """Admit the same head once more; None = `known` is no key in memory, or no longer valid: `admit`.

        Args:
            known: What `key_of` returned.
        """
        ...

    async def look_up(self, headers: dict[str, str]) -> None:
        """Look up the credentials that are not in memory.

        Raises:
            Unavailable: The database is down.
        """
        ...

    def knows(self, headers: dict[str, str]) -> bool:
        """Whether the caller has a credential that is known."""
        ...

    def billing_of(self, actor: "Actor", *, peer: str) -> Billing | None:
        """Return who pays for a caller's requests; None = no account does."""
        ...

    def name_of(self, actor: "Actor", headers: dict[str, str]) -> str:
        """Return how receipts name the caller's key."""
        ...


class KeyTokens(Protocol):
    """Tokens that stand for keys (front/ui/sessions.py)."""

    def digest_of(self, token: str) -> bytes | None:
        """Return the first bytes of the digest of the key that a token stands for; None = it is not valid."""
        ...


class Keys:
    """The accepted keys, as digests: comparing digests of one length does not leak a key's length by time.

    Args:
        settings: The keys.
        tokens: Stand for keys; None = there are none.
    """

    def __init__(self, settings: FrontSettings, tokens: KeyTokens | None = None) -> None:
        self._tokens = tokens
        self._client = [_digest(key) for key in split_keys(settings.appliance_api_keys)]
        self._operator = [_digest(key) for key in split_keys(settings.operator_api_keys)]
        self.origins = Origins(settings)
        self._local_only = [_digest(key) for key in split_keys(settings.stay_local_api_keys)]

    @property
    def is_open(self) -> bool:
        """Whether no client key is set, so that every client that reaches the port may use the models."""
        return not self._client

    def must_stay_local(self, headers: dict[str, str]) -> bool:
        """Whether the caller's key allows own backends only (STAY_LOCAL_API_KEYS)."""
        return bool(self._local_only) and self._is_one_of(read_key(headers), self._local_only)

    def knows(self, key: str) -> bool:
        """Whether a key is set, be it for clients or for operators."""
        return self._is_one_of(key, self._client + self._operator)

    def _is_one_of(self, key: str, digests: list[bytes]) -> bool:
        """Whether a key is one of some, or a token stands for one of them."""
        if self._tokens is not None and key.startswith(TOKEN_PREFIX):
            begin = self._tokens.digest_of(key)
            if begin is not None:
                return any(hmac.compare_digest(begin, digest[: len(begin)]) for digest in digests)
        return _is_one_of(key, digests)

    def check(self, access: Access, headers: dict[str, str], peer: str) -> None:
        """Admit a request, or raise.

        1. public address                              → pass
        2. client address, no keys set                 → pass, but no page of another site (origins.py)
        3. operator address, operator keys set         → one of them
        4. operator address, only client keys set      → one of those
        5. operator address, no keys at all            → callers on loopback; no other site's page, no proxy
        6. client address                              → a client or operator key

        Args:
            headers: By lower-case name.
            peer: The caller's address, "unix" for a unix socket.

        Raises:
            Unauthenticated: No key, or one that is not known.
            Forbidden: The caller does not have this level of access.
        """
        if access is Access.PUBLIC:  # 1
            return
        if access is Access.CLIENT and not self._client:  # 2
            self.origins.check(headers, peer)
            return
        if access is Access.OPERATOR and not self._operator and not self._client:  # 5
            self.check_loopback(headers, peer)
            return
        key = read_key(headers)
        if not key:
            raise Unauthenticated("No API key. Send it as `Authorization: Bearer KEY`.")
        if access is Access.OPERATOR and self._operator:  # 3
            if self._is_one_of(key, self._operator):
                return
            if self._is_one_of(key, self._client):
                raise Forbidden("This address needs a key of OPERATOR_API_KEYS.", code="operator_only")
        elif self._is_one_of(key, self._client + self._operator):  # 4, 6
            return
        raise Unauthenticated("Unknown API key.")

    def may_see_details(self, headers: dict[str, str], peer: str) -> bool:
        """Whether a caller sees a public address's details: with any key; without keys, no foreign page."""
        if self._client or self._operator:
            return self._is_one_of(read_key(headers), self._client + self._operator)
        try:
            self.origins.check(headers, peer)
        except Forbidden:
            return False
        return True

    def check_loopback(self, headers: dict[str, str], peer: str) -> None:
        """Admit callers on this machine, except pages of other sites and clients of a proxy.

        Raises:
            Forbidden: It is another one.
        """
        if not is_loopback(peer):
            raise Forbidden(
                "Without OPERATOR_API_KEYS this address is open to callers on this machine only. "
                "Set OPERATOR_API_KEYS and send one of these keys.",
                code="operator_only",
            )
        if self.origins.is_foreign_page(headers) or any(name in headers for name in FORWARDED):
            raise Forbidden(
                "Without OPERATOR_API_KEYS this address is closed to pages of other sites and to proxies. "
                "Set OPERATOR_API_KEYS and send one of these keys.",
                code="operator_only",
            )


def read_key(headers: dict[str, str]) -> str:
    """Read the caller's key, `Authorization: Bearer KEY` or `X-API-Key: KEY`; "" = none."""
    if "authorization" in headers:
        scheme, _, value = headers["authorization"].partition(" ")
        if scheme.lower() == "bearer" and value.strip():
            return value.strip()
    return headers["x-api-key"].strip() if "x-api-key" in headers else ""


def key_name(headers: dict[str, str]) -> str:
    """Return how receipts name the caller's key: the first 12 digits of its SHA-256; "" = none was sent."""
    key = read_key(headers)
    return hashlib.sha256(key.encode("utf-8", "replace")).hexdigest()[:12] if key else ""


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


def _is_one_of(key: str, digests: list[bytes]) -> bool:
    given = _digest(key)
    found = False
    for digest in digests:  # no early exit: the time must not tell which one matched
        found |= hmac.compare_digest(given, digest)
    return found
