"""The proxies that the environment names (HTTPS_PROXY and similar variables), read once for all clients.

    HTTPS_PROXY   for https addresses
    HTTP_PROXY    for http addresses
    ALL_PROXY     for both, where the other is not set
    NO_PROXY      comma list of what is contacted directly: a host or domain (with all below it), .domain,
                  *.domain, an address, a network in CIDR form, each with :port if wanted; * = everything

Lower-case names win, as in curl. This machine (localhost, loopback) is never contacted through a proxy: for a
proxy it would be another machine. Only http:// and https:// proxies are supported; without a scheme it is
http://.

Used by downloads alone: the connections to engines (`base/wire`) use no proxies.
"""

import ipaddress
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import quote, unquote, urlsplit

from appliance.base.errors import UpstreamFailed
from appliance.base.settings import HIDDEN

DEFAULT_PORTS = {"http": 80, "https": 443}
FORMS = "Set it to http://host:port or http://user:password@host:port."


class ProxyBusy(UpstreamFailed):
    """A proxy did not forward a request; a retry may help."""

    retryable = True
    default_code = "proxy_refused"


@dataclass(frozen=True, slots=True)
class Proxy:
    """One proxy.

    Attributes:
        variable: The environment variable that names it.
        url: Scheme, host and port, without credentials.
        user: "" = no credentials.
        password: Of the user.
    """

    variable: str
    url: str
    user: str = field(default="", repr=False)
    password: str = field(default="", repr=False)

    def __str__(self) -> str:
        return f"the proxy of {self.variable} ({self.url})"

    @property
    def url_with_credentials(self) -> str:
        """The URL with user and password, percent-encoded."""
        scheme, _, authority = self.url.partition("://")
        return (
            f"{scheme}://{quote(self.user, safe='')}:{quote(self.password, safe='')}@{authority}"
            if self.user
            else self.url
        )

    @property
    def authorization(self) -> dict[str, str]:
        """The header with the credentials; empty without any."""
        credentials = b64encode(f"{self.user}:{self.password}".encode()).decode()
        return {"Proxy-Authorization": f"Basic {credentials}"} if self.user else {}

    def error_for(self, status: int, host: str) -> UpstreamFailed:
        """Return the error that a response of the proxy itself means.

        1. 407               → credentials are missing or wrong
        2. 408, 429, 5xx     → it is busy, or cannot reach the host: a retry may help
        3. any other status  → it refuses this host
        """
        if status == 407:  # 1
            needed = "other credentials" if self.user else "credentials"
            return UpstreamFailed(
                f"The {str(self)[4:]} requires {needed} (407). "
                f"Set {self.variable} to http://user:password@host:port.",
                code="proxy_refused",
            )
        if status in {408, 429} or status >= 500:  # 2
            return ProxyBusy(f"{self} did not forward the request to {host} ({status})")
        return UpstreamFailed(  # 3
            f"The {str(self)[4:]} does not forward requests to {host} ({status}). "
            "Ask the operator of the proxy to allow that host, or add the host to NO_PROXY.",
            code="proxy_refused",
        )


@dataclass(frozen=True, slots=True)
class Proxies:
    """All proxies of the environment.

    Attributes:
        by_scheme: http and https → (variable, its value).
        no_proxy: The entries of NO_PROXY, in lower case.
    """

    by_scheme: Mapping[str, tuple[str, str]] = field(default_factory=dict, repr=False)
    no_proxy: tuple[str, ...] = ()

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> "Proxies":
        """Read the environment; an unusable variable is an error only when it is needed."""
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
        """Every text in them that must not be shown or logged."""
        found = []
        for _, value in self.by_scheme.values():
            user = value.partition("://")[2].rpartition("@")[0] or value.rpartition("@")[0]
            password = user.partition(":")[2]
            found += [text for text in (user, password, unquote(password)) if text]
        return found

    def find_unusable(self) -> dict[str, tuple[str, str]]:
        """Return the variables that name no usable proxy: variable → (its value, a sentence).

        A value is shown without what may be a password: only what follows its last `@` is.
        """
        found = {}
        for variable, value in self.by_scheme.values():
            try:
                _proxy(variable, value)
            except UpstreamFailed as exc:
                _, mark, rest = value.rpartition("@")
                scheme = "".join(value.partition("://")[:2]) if "://" in value else ""
                # Without an `@` what stands behind a colon may be a password, too.
                shown = HIDDEN if ":" in value.removeprefix(scheme) else value
                reason = str(exc).replace(
                    FORMS, "Set it to http://host:port."
                )  # an `@` in it would be blanked
                found[variable] = f"{scheme}***@{rest}" if mark else shown, reason
        return found

    def find(self, url: str) -> Proxy | None:
        """Return the proxy for an address; None = contact it directly.

        Raises:
            UpstreamFailed: The variable names no usable proxy.
        """
        parts = urlsplit(url)
        host = (parts.hostname or "").rstrip(".")
        if parts.scheme not in self.by_scheme or not host or is_local_host(host):
            return None
        if any(_matches(entry, host, parts.port or DEFAULT_PORTS[parts.scheme]) for entry in self.no_proxy):
            return None
        return _proxy(*self.by_scheme[parts.scheme])


def is_local_host(host: str) -> bool:
    """Say whether a name or address means this machine itself."""
    address = _address(host)
    return address.is_loopback if address is not None else host == "localhost" or host.endswith(".localhost")


def _proxy(variable: str, value: str) -> Proxy:
    """Parse a variable's value; no error repeats any of it, for it may contain a password."""
    try:
        parts = urlsplit(value if "://" in value else f"http://{value}")
        host, port = parts.hostname or "", parts.port
    except ValueError:
        host, port = "", None
    if not host or not host.isprintable() or " " in host or parts.path not in {"", "/"}:
        raise UpstreamFailed(
            f"{variable} is not the URL of a proxy. {FORMS}",
            code="unusable_proxy",
        )
    if parts.scheme.lower() not in DEFAULT_PORTS:
        raise UpstreamFailed(
            f"{variable} names a {parts.scheme[:10]}:// proxy; only http:// and https:// are supported. "
            "Hosts in NO_PROXY are contacted directly.",
            code="unusable_proxy",
        )
    authority = f"[{host}]" if ":" in host else host
    return Proxy(
        variable,
        f"{parts.scheme.lower()}://{authority}:{port or DEFAULT_PORTS[parts.scheme.lower()]}",
        unquote(parts.username or ""),
        unquote(parts.password or ""),
    )


def _matches(entry: str, host: str, port: int) -> bool:
    """Say whether an entry of NO_PROXY covers a host.

    1. `*`                      → every host
    2. an address or a network  → addresses in it
    3. a domain                 → it and everything below it
    """
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
    """Split an entry into host and port ("" = every port); a bare IPv6 address has colons of its own."""
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
