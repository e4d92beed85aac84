"""Which hosts may be asked and which folders may be read, when somebody else says where to fetch from.

Names allow names; addresses of private networks, of this machine and of the link are refused after the name
was resolved, unless the
operator listed the address or its network as well: a name in somebody's DNS must not lead into the operator's
network.
"""

import ipaddress
import os
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from urllib.parse import urlsplit

from appliance.base.errors import Forbidden, Unavailable
from appliance.base.http import check_host

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True, slots=True)
class HostPolicy:
    """Hosts that may be asked.

    names        patterns of host names (`files.example.com`, `*.example.com`, `*`); None = every name
    networks     private networks that may be reached all the same
    is_open      every address may be reached: the operator chose the host
    """

    names: tuple[str, ...] | None = None
    networks: tuple[Network, ...] = ()
    is_open: bool = False

    @classmethod
    def everywhere(cls) -> "HostPolicy":
        return cls(is_open=True)

    @classmethod
    def listed(cls, entries: Sequence[str], *, any_name: bool = False) -> "HostPolicy":
        """Read DOWNLOAD_ALLOWED_HOSTS: names, patterns, addresses and networks. An address allows itself as a name, too."""
        networks = tuple(network for entry in entries if (network := _network(entry)) is not None)
        return cls(None if any_name else tuple(entry.lower().strip("[]") for entry in entries), networks)

    def check_host(self, host: str) -> None:
        """Raises  Forbidden: the host is not listed"""
        name = host.lower().strip("[]").rstrip(".")
        if self.names is None or any(fnmatchcase(name, pattern) for pattern in self.names):
            return
        if any(_address(name) in network for network in self.networks if _address(name) is not None):
            return
        raise Forbidden(
            f"Nothing may be fetched from {host}. The operator can allow it with DOWNLOAD_ALLOWED_HOSTS.",
            code="host_not_allowed",
        )

    def refusal_reason(self, address: str) -> str:
        """Say why an address may not be reached; "" = it may."""
        if self.is_open:
            return ""
        found = _address(address.partition("%")[0])
        if found is None:
            return f"{address} is no address"
        if any(found in network for network in self.networks) or (found.is_global and not found.is_multicast):
            return ""
        return (
            f"{address} is an address of a private network, of this machine or of the link; the operator can list it "
            "in DOWNLOAD_ALLOWED_HOSTS"
        )


def _network(entry: str) -> Network | None:
    try:
        return ipaddress.ip_network(entry.strip("[]"), strict=False)
    except ValueError:
        return None


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Read an address; an IPv4 one in IPv6's clothes is taken for what it is."""
    try:
        found = ipaddress.ip_address(text)
    except ValueError:
        return None
    inner = (found.ipv4_mapped or found.sixtofour) if isinstance(found, ipaddress.IPv6Address) else None
    return inner or found


@dataclass(frozen=True, slots=True)
class FolderPolicy:
    """Folders of this machine that may be read. `roots`: resolved; None = every folder."""

    roots: tuple[Path, ...] | None = ()

    @classmethod
    def listed(cls, entries: Sequence[str | Path]) -> "FolderPolicy":
        return cls(tuple(Path(os.path.realpath(entry)) for entry in entries))

    def allows(self, path: str | Path) -> bool:
        """Say whether a path, its links followed, lies in one of the folders."""
        real = Path(os.path.realpath(path))
        return self.roots is None or any(real.is_relative_to(root) for root in self.roots)

    def check(self, path: str | Path, *, what: str) -> None:
        """Raises  Forbidden"""
        if not self.allows(path):
            raise Forbidden(
                f"{what} is not below a folder that may be read. The operator can allow one with DOWNLOAD_ALLOWED_DIRS.",
                code="folder_not_allowed",
            )


async def check_url(url: str, *, reach: HostPolicy, what: str, is_proxied: bool = False) -> None:
    """Refuse a host that may not be reached, for sources whose own client asks it: a name that changes its address right afterwards gets through.

    Takes   is_proxied: it is asked through a proxy, which may know more names
    Raises  Forbidden; Unavailable: the name is not known
    """
    host = urlsplit(url).hostname or ""
    if reach.is_open:
        return
    try:
        await check_host(host, reach.refusal_reason)
    except OSError as exc:
        if not is_proxied:
            raise Unavailable(f"{what}: {host} is not known: {exc.strerror or exc}") from exc
