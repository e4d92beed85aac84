"""Which hosts are this machine alone."""

import ipaddress
from contextlib import suppress


def is_loopback(host: str) -> bool:
    """Whether a host is a loopback address, or `localhost`."""
    if host == "localhost":
        return True
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return False
