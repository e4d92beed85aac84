"""Who may call: keys compared in constant time, and the three levels of access an address can have."""

import hashlib
import hmac
from enum import Enum
from ipaddress import ip_address

from appliance.base.errors import Forbidden, Unauthenticated
from appliance.base.wire.dial import is_address
from appliance.front.settings import FrontSettings, split_keys

OWN_DOMAINS = (".localhost", ".local", ".internal")  # nobody can buy a name there and have it lead here


class Access(Enum):
    """Every address has one; what is not listed is closed."""

    PUBLIC = "public"  # health: anybody who reaches the port
    CLIENT = "client"  # a client key, where keys are set
    OPERATOR = "operator"  # an operator key; without any key set, callers on loopback


class Keys:
    """The accepted keys, as digests: comparing digests of equal length tells nothing about a key by its time."""

    def __init__(self, settings: FrontSettings) -> None:
        self._client = [_digest(key) for key in split_keys(settings.appliance_api_keys)]
        self._operator = [_digest(key) for key in split_keys(settings.operator_api_keys)]
        self._origins = set(settings.cors_origins)
        self._staying = [_digest(key) for key in split_keys(settings.stay_local_api_keys)]

    @property
    def is_open(self) -> bool:
        """Whether anybody who reaches the port may use the models."""
        return not self._client

    def must_stay_local(self, headers: dict[str, str]) -> bool:
        """Whether the caller's key is one whose requests may not leave this machine's own backends."""
        return bool(self._staying) and _is_one_of(read_key(headers), self._staying)

    def check(self, access: Access, headers: dict[str, str], peer: str) -> None:
        """Let the call pass, or raise.

        1. public address                              → pass
        2. client address, no keys set                 → pass
        3. operator address, operator keys set         → one of them
        4. operator address, only client keys set      → one of those
        5. operator address, no keys at all            → callers on loopback only; no page of another site there, and no proxy
        6. client address                              → a client or operator key
        """
        if access is Access.PUBLIC or (access is Access.CLIENT and not self._client):  # 1, 2
            return
        if access is Access.OPERATOR and not self._operator and not self._client:  # 5
            if is_loopback(peer) and not self._is_foreign_page(headers) and not _is_forwarded(headers):
                return
            if is_loopback(peer):
                raise Forbidden(
                    "Pages of other sites, and what a proxy passes on, may not call this address. Set OPERATOR_API_KEYS and send one.",
                    code="operator_only",
                )
            raise Forbidden(
                "This address is for callers on this machine, or with a key of OPERATOR_API_KEYS once those are set.",
                code="operator_only",
            )
        key = read_key(headers)
        if not key:
            raise Unauthenticated("No API key. Send it as `Authorization: Bearer KEY`.")
        if access is Access.OPERATOR and self._operator:  # 3
            if _is_one_of(key, self._operator):
                return
            if _is_one_of(key, self._client):
                raise Forbidden("This address needs a key of OPERATOR_API_KEYS.", code="operator_only")
        elif _is_one_of(key, self._client + self._operator):  # 4, 6
            return
        raise Unauthenticated("The API key is not known here.")

    def _is_foreign_page(self, headers: dict[str, str]) -> bool:
        """Whether a browser says that a page of another site calls: being on this machine is then no sign of trust.

        1. an origin of CORS_ORIGINS                                      → no
        2. any other origin, or the browser's own word for it             → yes
        3. a host name that is not this machine's: it was made to lead here → yes
        """
        origin, site = headers.get("origin", ""), headers.get("sec-fetch-site", "")
        if origin and ("*" in self._origins or origin in self._origins):  # 1
            return False
        if origin or site in {"cross-site", "same-site"}:  # 2
            return True
        name = headers.get("host", "").rpartition(":")[0] or headers.get("host", "")
        return "." in name and not name.endswith(OWN_DOMAINS) and not is_address(name.strip("[]"))  # 3


def read_key(headers: dict[str, str]) -> str:
    """Read the caller's key: `Authorization: Bearer KEY` or `X-API-Key: KEY`."""
    scheme, _, value = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and value.strip():
        return value.strip()
    return headers.get("x-api-key", "").strip()


def is_loopback(peer: str) -> bool:
    """Whether an address is this machine's own; unix sockets count as such."""
    if peer == "unix":
        return True
    try:
        address = ip_address(peer.partition("%")[0])
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


def _is_forwarded(headers: dict[str, str]) -> bool:
    """Whether a proxy on this machine passes on what somebody else sent."""
    return any(name in headers for name in ("x-forwarded-for", "forwarded", "x-real-ip", "via"))


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


def _is_one_of(key: str, digests: list[bytes]) -> bool:
    given = _digest(key)
    found = False
    for digest in digests:  # all of them, always: the time must not say which one matched
        found |= hmac.compare_digest(given, digest)
    return found
