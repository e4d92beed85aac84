"""Which addresses the appliance may call for a caller: a URL that a caller chose must not lead inside.

A URL is read here once, and rebuilt from what was read, so that no other reader can see another host in it.
The name is looked up once, every address of it has to be allowed, and the connection goes to one of these
(`TargetPolicy.refusal_reason`, handed to `HttpClient`). What a name resolved to is never told.
"""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Final
from urllib.parse import quote, urlsplit

from appliance.base.errors import Forbidden, Invalid
from appliance.base.reach import ODD_ADDRESS, SPECIAL, Network

MAX_URL_CHARACTERS: Final = 8192
DEFAULT_PORTS: Final = {"http": 80, "https": 443}
FIRST_PORT: Final = 1024  # below are services that speak no HTTP: mail, files, names
TEREDO: Final = ip_network("2001::/32")
MAPPED: Final = ip_network("::ffff:0:0/96")
# Characters of a path and a query that are sent as they are; "%" was the caller's own.
_KEPT: Final = "/:@!$&'()*+,;=?-._~%[]|"
_NAME: Final = re.compile(r"(?=.{1,253}$)[a-z0-9_]([a-z0-9_-]{0,62})(\.[a-z0-9_][a-z0-9_-]{0,62})*")
_UNSEEN: Final = re.compile(r"[\x00-\x20\x7f-\x9f\\]")
_TEXT_OF_REFUSAL: Final = "This target may not be called from here."


@dataclass(frozen=True, slots=True)
class CallTarget:
    """An address that was read and checked, apart from what its name resolves to.

    Attributes:
        scheme: http or https.
        host: In lower case, a name in ASCII or an IP address without brackets.
        port: Where it is connected to.
        path: Percent-encoded, begins with a slash.
        query: Percent-encoded, without the question mark; "" = none.
    """

    scheme: str
    host: str
    port: int
    path: str = "/"
    query: str = ""

    @property
    def origin(self) -> str:
        """Scheme, host and port; the port only where it is not the scheme's own."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}" + (
            "" if self.port == DEFAULT_PORTS[self.scheme] else f":{self.port}"
        )

    @property
    def url(self) -> str:
        """The whole address, as it is sent."""
        return f"{self.origin}{self.path}" + (f"?{self.query}" if self.query else "")


@dataclass(frozen=True, slots=True)
class TargetPolicy:
    """What may be called.

    Attributes:
        hosts: Patterns of host names (`api.example.com`, `*.example.com`); () = every host.
        networks: Private networks that may be called, too.
        own_ports: Ports of the appliance itself, which are refused on every host.
    """

    hosts: tuple[str, ...] = ()
    networks: tuple[Network, ...] = ()
    own_ports: frozenset[int] = frozenset()

    @classmethod
    def of(
        cls, hosts: Sequence[str] = (), networks: Sequence[str] = (), own_ports: Collection[int] = ()
    ) -> "TargetPolicy":
        """Return the policy of settings.

        Args:
            hosts: Patterns of host names.
            networks: In CIDR notation.
            own_ports: Ports of the appliance; 0 = one that is not used.

        Raises:
            ValueError: One is no network.
        """
        return cls(
            tuple(one.lower() for one in hosts),
            tuple(ip_network(one, strict=False) for one in networks),
            frozenset(port for port in own_ports if port),
        )

    def check(self, url: str) -> CallTarget:
        """Read an address, and check all that can be checked without looking its name up.

        1. it is no http(s) URL of printable text                      → 400
        2. it has a user or a password                                 → 403
        3. its host is written in a way that readers differ in         → 403
        4. its port is none of 80, 443, 1024–65535, or one of our own  → 403
        5. its host is none of those that are allowed                  → 403
        6. its host is an IP address that is not allowed               → 403

        Raises:
            Invalid, Forbidden: As above.
        """
        target = read_target(url)  # 1, 2, 3
        port = target.port
        if port in self.own_ports or not (port in (80, 443) or FIRST_PORT <= port <= 65_535):  # 4
            raise refused("Its port is not allowed: 80, 443 and 1024 to 65535 are, less the appliance's own.")
        if self.hosts and not any(fnmatchcase(target.host, pattern) for pattern in self.hosts):  # 5
            raise refused("Its host is none of those that the operator allows (GPU_PROXY_ALLOW).")
        if _address(target.host) is not None and self.refusal_reason(target.host):  # 6
            raise refused()
        return target

    def refusal_reason(self, address: str) -> str:
        """Say why an IP address must not be connected to; "" = it may be."""
        found = _address(address)
        if found is None:
            return "it is no IP address"
        if any(found in network for network in self.networks):
            return ""
        is_special = any(found in network for network in (*SPECIAL, TEREDO, MAPPED))
        if found.is_global and not found.is_multicast and not found.is_reserved and not is_special:
            return ""
        return "it is no public address"


def read_target(url: str) -> CallTarget:
    """Read an address; see `TargetPolicy.check`, 1 to 3."""
    if not isinstance(url, str) or not url or len(url) > MAX_URL_CHARACTERS or _UNSEEN.search(url):
        raise _no_url(f"It must be an http(s) URL of up to {MAX_URL_CHARACTERS} printable characters.")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise _no_url("It is no URL.") from None
    if parts.scheme not in DEFAULT_PORTS:
        raise _no_url("It must begin with http:// or https://.")
    if "@" in parts.netloc:
        raise refused("It has a user or a password in it; send them as a header.")
    path = quote(parts.path or "/", safe=_KEPT.replace("?", ""))
    return CallTarget(
        parts.scheme,
        read_host(parts.netloc),
        DEFAULT_PORTS[parts.scheme] if port is None else port,
        path if path.startswith("/") else f"/{path}",
        quote(parts.query, safe=_KEPT),
    )


def read_host(netloc: str) -> str:
    """Return the host of an address, in the one form in which all readers agree about it.

    1. in brackets                                       → an IPv6 address without a zone
    2. a name of other letters than ASCII                → in ASCII; digits and dots written so are refused
    3. it ends with a number, as IPv4 addresses do       → only four decimal numbers are an address
    4. else                                              → a name of letters, digits, `-`, `_` and dots

    Raises:
        Invalid: There is none.
        Forbidden: It is written otherwise.
    """
    if netloc.startswith("["):  # 1
        inner, _, rest = netloc[1:].partition("]")
        found = _address(inner)
        if not isinstance(found, IPv6Address) or found.scope_id is not None or (rest and rest[0] != ":"):
            raise refused("What is in brackets is no IPv6 address.")
        return str(found)
    host = netloc.rpartition(":")[0] if ":" in netloc else netloc
    if not host:
        raise _no_url("It has no host.")
    is_ascii = host.isascii()
    if not is_ascii:  # 2
        try:
            host = host.encode("idna").decode()
        except UnicodeError:
            raise refused("Its host is no name.") from None
    host = host.lower()
    last = host.rstrip(".").rpartition(".")[2]
    if last.isdecimal() or last.startswith("0x") or ODD_ADDRESS.fullmatch(host.rstrip(".")):  # 3
        found = _address(host)
        if not is_ascii or not isinstance(found, IPv4Address) or str(found) != host:
            raise refused("Its host is an address that is not written as four decimal numbers.")
        return host
    if _NAME.fullmatch(host) is None:  # 4
        raise refused("Its host is no name: letters, digits, `-`, `_`, and dots between them.")
    return host


def refused(why: str = "") -> Forbidden:
    """Return the refusal of a target.

    Args:
        why: About what the caller wrote; never what a name resolved to.
    """
    text = f"{_TEXT_OF_REFUSAL} {why}" if why else _TEXT_OF_REFUSAL
    return Forbidden(text, param="target_url", code="target_refused")


def _no_url(why: str) -> Invalid:
    return Invalid(f"`target_url` cannot be used. {why}", param="target_url", code="invalid_target")


def _address(text: str) -> IPv4Address | IPv6Address | None:
    try:
        return ip_address(text)
    except ValueError:
        return None
