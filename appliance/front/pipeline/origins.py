"""Which web pages and host names may call where no key says who calls.

That a request comes from this machine proves nothing: a browser here sends what any page in it asks for.
"""

import os
from ipaddress import ip_address

from appliance.base.errors import Forbidden
from appliance.base.wire.dial import is_address
from appliance.front.settings import FrontSettings

OWN_DOMAINS = (".localhost", ".local", ".internal")  # no domain can be bought there for DNS rebinding
THIS_MACHINE = ("localhost", "ip6-localhost", "::1", "0.0.0.0", "::")
MAX_KNOWN = 256  # Host values whose decision is kept


class Origins:
    """Decides by the headers Host and Origin, by settings alone; a Host is judged once.

    Attributes:
        is_any: CORS_ORIGINS names every origin.
    """

    def __init__(self, settings: FrontSettings) -> None:
        self._named = {origin.lower().rstrip("/") for origin in settings.cors_origins}
        self.is_any = "*" in self._named
        allowed = [entry.lower() for entry in settings.allowed_hosts]
        self._is_any_host = "*" in allowed
        self._listed = {entry for entry in allowed if not entry.startswith("*")}
        self._own = {split_origin(origin)[1] for origin in self._named if origin != "*"}
        self._own |= {
            name.lower() for name in (os.uname().nodename, settings.proxy_host, settings.sidecar_host)
        }
        self._endings = tuple(entry[1:] for entry in allowed if entry.startswith("*."))
        self._known: set[str] = set()  # Host values that are ours

    # ---- decisions

    def check(self, headers: dict[str, str], peer: str) -> None:
        """Admit a caller without a key, unless a foreign page may have sent the request.

        1. every origin is named (CORS_ORIGINS=*)                     → admit
        2. over loopback, by a host name that is not this machine's   → refuse: it may be DNS rebinding
        3. no page                                                    → admit
        4. a page of a named origin, or of our own                    → admit
        5. a page or a program of this machine                        → admit
        6. any other page                                             → refuse

        Args:
            headers: By lower-case name.
            peer: The caller's address, "unix" for a unix socket.

        Raises:
            Forbidden: Cases 2 and 6.
        """
        if self.is_any:  # 1
            return
        host = headers.get("host", "")
        is_own = host in self._known or self.is_own_host(host) or self._is_any_host
        if not is_own and is_loopback(peer) and not self._is_named(headers):  # 2
            raise Forbidden(
                f"Without API keys, requests to the host name {_shown(host)} are refused on this machine. "
                "The operator can name it in ALLOWED_HOSTS, or set APPLIANCE_API_KEYS.",
                code="host_not_allowed",
            )
        origin = headers.get("origin")
        if origin is None or self._is_named(headers) or self.is_own_origin(headers):  # 3, 4
            return
        scheme, name, _ = split_origin(origin.lower())
        if scheme not in {"http", "https", ""} or _is_this_machine(name) or self._is_listed(name):  # 5
            return
        raise Forbidden(  # 6
            f"Without API keys, pages of {_shown(origin)} may not call. The operator can name this origin in "
            "CORS_ORIGINS (or its host in ALLOWED_HOSTS), or set APPLIANCE_API_KEYS.",
            code="origin_not_allowed",
        )

    def may_page_call(self, headers: dict[str, str]) -> bool:
        """Whether a caller is no web page, or one of a named origin (CORS_ORIGINS) or of our own."""
        if self.is_any or "origin" not in headers:
            return True
        return self._is_named(headers) or self.is_own_origin(headers)

    def is_foreign_page(self, headers: dict[str, str]) -> bool:
        """Whether another site's page calls an operator's address; `*` in a setting opens nothing here.

        1. an origin that CORS_ORIGINS names, or our own      → no
        2. any other origin, or a cross-site request          → yes
        3. a host name that is not ours: DNS rebinding        → yes
        """
        if self._is_named(headers) or self.is_own_origin(headers):  # 1
            return False
        if "origin" in headers or headers.get("sec-fetch-site", "") in {"cross-site", "same-site"}:  # 2
            return True
        return not self.is_own_host(headers.get("host", ""))  # 3

    def is_own_origin(self, headers: dict[str, str]) -> bool:
        """Whether a page calls the very host and port that it came from, and that is ours."""
        host = headers.get("host", "")
        scheme, name, port = split_origin(headers.get("origin", "").lower())
        if not name or scheme not in {"http", "https"} or not self.is_own_host(host):
            return False
        default = "443" if scheme == "https" else "80"
        own_name, own_port = split_host(host.lower())
        return (name, port or default) == (own_name, own_port or default)

    def is_own_host(self, host: str) -> bool:
        """Whether a Host header names this machine: no domain of others, or one that ALLOWED_HOSTS names."""
        if host in self._known:
            return True
        name = split_host(host.lower())[0]
        is_own = (
            "." not in name
            or name.endswith(OWN_DOMAINS)
            or is_address(name)
            or name in self._own
            or self._is_listed(name)
        )
        if is_own and len(self._known) < MAX_KNOWN:
            self._known.add(host)
        return is_own

    def _is_named(self, headers: dict[str, str]) -> bool:
        origin = headers.get("origin")
        return origin is not None and origin.lower() in self._named

    def _is_listed(self, name: str) -> bool:
        return name in self._listed or name.endswith(self._endings)


def is_loopback(peer: str) -> bool:
    """Whether a caller's address is loopback; "unix" (a unix socket) counts as loopback."""
    if peer == "unix":
        return True
    try:
        address = ip_address(peer.partition("%")[0])
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


def split_origin(origin: str) -> tuple[str, str, str]:
    """Split an origin into (scheme, host, port); ("", "", "") for `null` and what is none."""
    scheme, mark, rest = origin.partition("://")
    return (scheme, *split_host(rest)) if mark else ("", "", "")


def split_host(host: str) -> tuple[str, str]:
    """Split `host[:port]` into (host without brackets and last dot, port or "")."""
    if host.startswith("["):
        name, _, port = host[1:].partition("]")
        return name, port.removeprefix(":")
    name, _, port = host.partition(":")
    return name.rstrip("."), port


def _is_this_machine(name: str) -> bool:
    return name in THIS_MACHINE or name.endswith(".localhost") or (name[:4] == "127." and is_address(name))


def _shown(value: str) -> str:
    return repr(value[:100])
