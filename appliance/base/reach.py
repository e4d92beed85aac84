"""Which hosts may be contacted and which folders may be read, for sources that a caller names.

To list a name allows its public addresses only. Private, loopback and link-local addresses are refused after
the name was resolved, unless the operator listed the address or its network as well: a name in a foreign DNS
must not lead into the operator's network.
"""

import ipaddress
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from urllib.parse import urlsplit

from appliance.base.errors import Forbidden, Unavailable
from appliance.base.http import check_host

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

# What `is_global` of some Python version lets through, though it may lead to a private address: IPv4
# translated or embedded (RFC 6052, 8215, 7915, 4291, 3056), old site-local addresses (RFC 3879), IETF
# assignments (RFC 6890), multicast.
SPECIAL: tuple[Network, ...] = tuple(
    ipaddress.ip_network(text)
    for text in (
        "64:ff9b::/96",
        "64:ff9b:1::/48",
        "::/96",
        "::ffff:0:0:0/96",
        "2002::/16",
        "fec0::/10",
        "192.0.0.0/24",
        "224.0.0.0/4",
        "ff00::/8",
    )
)
# An address as one number, or in parts that are octal, hexadecimal or too few: libraries read it differently.
ODD_ADDRESS = re.compile(r"(0x[0-9a-f]*|[0-9]+)(\.(0x[0-9a-f]*|[0-9]+)){0,3}")


@dataclass(frozen=True, slots=True)
class HostPolicy:
    """Hosts that may be contacted.

    Attributes:
        names: Patterns of host names (`files.example.com`, `*.example.com`, `*`); None = every name.
        networks: Private networks that are allowed in addition.
        is_open: Every address is allowed: the operator chose the host.
    """

    names: tuple[str, ...] | None = None
    networks: tuple[Network, ...] = ()
    is_open: bool = False

    @classmethod
    def unrestricted(cls) -> "HostPolicy":
        """Return the policy that allows every host."""
        return cls(is_open=True)

    @classmethod
    def listed(cls, entries: Sequence[str], *, any_name: bool = False) -> "HostPolicy":
        """Parse DOWNLOAD_ALLOWED_HOSTS.

        Args:
            entries: Names, patterns, addresses and networks; an address allows itself as a name, too.
            any_name: Every name is allowed; the entries add private networks only.
        """
        networks = tuple(network for entry in entries if (network := _network(entry)) is not None)
        return cls(None if any_name else tuple(entry.lower().strip("[]") for entry in entries), networks)

    def check_host(self, host: str) -> None:
        """Check that a host is listed.

        Raises:
            Forbidden: It is not, or it is an address that is not written in the usual form.
        """
        name = host.lower().strip("[]").rstrip(".")
        if ODD_ADDRESS.fullmatch(name) and _address(name) is None:
            raise Forbidden(
                f"{host[:100]} is not a canonical address. Write it as four decimal numbers: 192.0.2.1.",
                code="host_not_allowed",
            )
        if self.names is None or any(fnmatchcase(name, pattern) for pattern in self.names):
            return
        if any(_address(name) in network for network in self.networks if _address(name) is not None):
            return
        raise Forbidden(
            f"Downloads from {host} are not allowed. The operator can allow it in DOWNLOAD_ALLOWED_HOSTS.",
            code="host_not_allowed",
        )

    def refusal_reason(self, address: str) -> str:
        """Say why an IP address is not allowed; "" = it is."""
        if self.is_open:
            return ""
        text = address.partition("%")[0]
        found = _address(text)
        if found is None:
            return f"{address} is not an IP address"
        written = ipaddress.ip_address(text)
        if any(found in network or written in network for network in self.networks):
            return ""
        if found.is_global and not any(found in network or written in network for network in SPECIAL):
            return ""
        return (
            f"{address} is a private, loopback or link-local address; the operator can allow it in "
            "DOWNLOAD_ALLOWED_HOSTS"
        )


def _network(entry: str) -> Network | None:
    try:
        return ipaddress.ip_network(entry.strip("[]"), strict=False)
    except ValueError:
        return None


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Parse an address; an IPv4 address embedded in an IPv6 one counts as IPv4."""
    try:
        found = ipaddress.ip_address(text)
    except ValueError:
        return None
    inner = (found.ipv4_mapped or found.sixtofour) if isinstance(found, ipaddress.IPv6Address) else None
    return inner or found


@dataclass(frozen=True, slots=True)
class FolderPolicy:
    """Folders of this machine that may be read.

    Attributes:
        roots: Resolved paths; None = every folder.
    """

    roots: tuple[Path, ...] | None = ()

    @classmethod
    def listed(cls, entries: Sequence[str | Path]) -> "FolderPolicy":
        """Return the policy that allows these folders."""
        return cls(tuple(Path(os.path.realpath(entry)) for entry in entries))

    def allows(self, path: str | Path) -> bool:
        """Say whether a path, with its links resolved, is in one of the folders."""
        real = Path(os.path.realpath(path))
        return self.roots is None or any(real.is_relative_to(root) for root in self.roots)

    def check(self, path: str | Path, *, what: str) -> None:
        """Check a path.

        Args:
            path: The path; its links are resolved.
            what: Begins the error's text.

        Raises:
            Forbidden: It is in none of the folders.
        """
        if not self.allows(path):
            raise Forbidden(
                f"{what} is not in an allowed folder. The operator can allow it in DOWNLOAD_ALLOWED_DIRS.",
                code="folder_not_allowed",
            )


async def check_url(url: str, *, reach: HostPolicy, what: str, is_proxied: bool = False) -> None:
    """Check the host of a URL, for sources whose own client library opens the connection.

    A name whose address changes right after this check is not caught.

    Args:
        url: What will be fetched.
        reach: The allowed hosts.
        what: Begins the error's text.
        is_proxied: It is fetched through a proxy, which may be able to resolve more names.

    Raises:
        Forbidden: The host is not allowed.
        Unavailable: The name cannot be resolved.
    """
    host = urlsplit(url).hostname or ""
    if reach.is_open:
        return
    try:
        await check_host(host, reach.refusal_reason)
    except OSError as exc:
        if not is_proxied:
            raise Unavailable(f"{what}: the name {host} cannot be resolved: {exc.strerror or exc}") from exc
