"""The proxies that the environment names, HTTPS_PROXY and its kin: one reading for every client that fetches from elsewhere.

    HTTPS_PROXY   for https addresses      HTTP_PROXY   for http addresses      ALL_PROXY   for both, where those two say nothing
    NO_PROXY      comma list of what is asked directly: host or domain (with all below it), .domain, *.domain, address, network in
                  CIDR form, each with :port where wanted; * = everything

Names in small letters win, as in curl. This machine (localhost, loopback) is never asked through a proxy: for
a proxy it would be another one. Only http:// and https:// proxies can be used; a host without a scheme is an
http:// one.

Used by downloads alone: the connections to engines (wire.py) know no proxies.
"""

import ipaddress
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import quote, unquote, urlsplit

from appliance.base.errors import UpstreamFailed

DEFAULT_PORTS = {"http": 80, "https": 443}


class ProxyBusy(UpstreamFailed):
    """A proxy did not pass a request on; asking again may help."""

    retryable = True
    default_code = "proxy_refused"


@dataclass(frozen=True, slots=True)
class Proxy:
    """One proxy. `variable`: where it was named; `url`: scheme, host and port, without the credentials."""

    variable: str
    url: str
    user: str = field(default="", repr=False)
    password: str = field(default="", repr=False)

    def __str__(self) -> str:
        return f"the proxy of {self.variable} ({self.url})"

    @property
    def url_with_credentials(self) -> str:
        scheme, _, place = self.url.partition("://")
        return (
            f"{scheme}://{quote(self.user, safe='')}:{quote(self.password, safe='')}@{place}"
            if self.user
            else self.url
        )

    @property
    def authorization(self) -> dict[str, str]:
        """Give the header with the credentials, where there are some."""
        words = b64encode(f"{self.user}:{self.password}".encode()).decode()
        return {"Proxy-Authorization": f"Basic {words}"} if self.user else {}

    def refusal(self, status: int, host: str) -> UpstreamFailed:
        """Say what a status of its own means: 1. credentials   2. it is busy, or cannot reach the host   3. it does not want to."""
        if status == 407:  # 1
            given = "other credentials" if self.user else "credentials"
            return UpstreamFailed(
                f"The {str(self)[4:]} wants {given} (407). Write them into {self.variable}: http://user:password@host:port.",
                code="proxy_refused",
            )
        if status in {408, 429} or status >= 500:  # 2
            return ProxyBusy(f"{self} did not pass on to {host} ({status})")
        return UpstreamFailed(
            f"The {str(self)[4:]} does not pass on to {host} ({status}). Ask who runs it to allow that host, or name the host "
            "in NO_PROXY.",
            code="proxy_refused",
        )  # 3


@dataclass(frozen=True, slots=True)
class Proxies:
    """All of them. `by_scheme`: (variable, what it holds) for http and https; `direct`: the entries of NO_PROXY."""

    by_scheme: Mapping[str, tuple[str, str]] = field(default_factory=dict, repr=False)
    direct: tuple[str, ...] = ()

    @classmethod
    def read(cls, environ: Mapping[str, str]) -> "Proxies":
        """Read the environment. A variable that cannot be used is told of when it is needed: it may be meant for others."""
        found = {}
        for scheme in ("http", "https"):
            for variable in (f"{scheme}_proxy", f"{scheme.upper()}_PROXY", "all_proxy", "ALL_PROXY"):
                if value := environ.get(variable, "").strip():
                    found[scheme] = (variable, value)
                    break
        entries = environ.get("no_proxy", "") or environ.get("NO_PROXY", "")
        return cls(found, tuple(entry for entry in entries.replace(" ", ",").lower().split(",") if entry))

    @property
    def secrets(self) -> list[str]:
        """Give every text in them that must be seen nowhere."""
        found = []
        for _, value in self.by_scheme.values():
            user = value.partition("://")[2].rpartition("@")[0] or value.rpartition("@")[0]
            password = user.partition(":")[2]
            found += [text for text in (user, password, unquote(password)) if text]
        return found

    def of(self, url: str) -> Proxy | None:
        """Give the proxy through which an address is asked; None = directly.

        Raises  UpstreamFailed: the variable names none that can be used
        """
        parts = urlsplit(url)
        host = (parts.hostname or "").rstrip(".")
        if parts.scheme not in self.by_scheme or not host or is_local_host(host):
            return None
        if any(_matches(entry, host, parts.port or DEFAULT_PORTS[parts.scheme]) for entry in self.direct):
            return None
        return _proxy(*self.by_scheme[parts.scheme])


def is_local_host(host: str) -> bool:
    """Whether a name or address means this machine itself."""
    address = _address(host)
    return address.is_loopback if address is not None else host == "localhost" or host.endswith(".localhost")


def _proxy(variable: str, value: str) -> Proxy:
    """Read what a variable holds; nothing of it is repeated in an error, for it may hold a password."""
    try:
        parts = urlsplit(value if "://" in value else f"http://{value}")
        host, port = parts.hostname or "", parts.port
    except ValueError:
        host, port = "", None
    if not host or not host.isprintable() or " " in host or parts.path not in {"", "/"}:
        raise UpstreamFailed(
            f"{variable} names no proxy that can be used; write http://host:port, or http://user:password@host:port.",
            code="unusable_proxy",
        )
    if parts.scheme.lower() not in DEFAULT_PORTS:
        raise UpstreamFailed(
            f"{variable} names a {parts.scheme[:10]}:// proxy; only http:// and https:// proxies can be used. "
            "Hosts in NO_PROXY are asked directly.",
            code="unusable_proxy",
        )
    place = f"[{host}]" if ":" in host else host
    return Proxy(
        variable,
        f"{parts.scheme.lower()}://{place}:{port or DEFAULT_PORTS[parts.scheme.lower()]}",
        unquote(parts.username or ""),
        unquote(parts.password or ""),
    )


def _matches(entry: str, host: str, port: int) -> bool:
    """Say whether an entry of NO_PROXY means a host: 1. everything   2. a network, an address   3. a domain and all below it."""
    if entry == "*":  # 1
        return True
    name, its_port = _split(entry)
    if its_port and its_port != str(port):
        return False
    address, network = _address(host), _network(name)
    if address is not None or network is not None:  # 2
        return address is not None and network is not None and address in network
    domain = name.removeprefix("*").strip(".")  # 3
    return bool(domain) and (host == domain or host.endswith(f".{domain}"))


def _split(entry: str) -> tuple[str, str]:
    """Part an entry into host and port ("" = every port); a bare IPv6 address has colons of its own."""
    if entry.startswith("["):
        name, _, port = entry[1:].partition("]")
        return name, port.removeprefix(":")
    name, colon, port = entry.rpartition(":")
    return (name, port) if colon and port.isdecimal() and ":" not in name else (entry, "")


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text.strip("[]").partition("%")[0])
    except ValueError:
        return None


def _network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError:
        return None
