"""Checks of addresses: backends that are the appliance itself, and proxies that cannot be used.

Requests to such a backend would go round.
"""

import socket
from collections.abc import Mapping
from ipaddress import ip_address
from urllib.parse import urlsplit

from appliance.base.proxies import Proxies
from appliance.base.settings import Problem
from appliance.engines.specs import FleetSpec
from appliance.front.pipeline.origins import is_loopback

ANY_ADDRESS = ("0.0.0.0", "::", "")
DEFAULT_PORTS = {"http": 80, "https": 443}


def check_own_addresses(
    fleet: FleetSpec, endpoints: list[str], *, proxy_host: str, proxy_port: int
) -> list[Problem]:
    """Return a problem for each backend and hosted endpoint that is the appliance's own address.

    Args:
        fleet: The backends of BACKENDS and CONFIG_PATH.
        endpoints: NOVITA_OPENAI_ENDPOINTS, where a key for them is set.
        proxy_host: PROXY_HOST.
        proxy_port: PROXY_PORT.
    """
    urls = [("BACKENDS", spec.url) for spec in fleet.backends]
    urls += [("NOVITA_OPENAI_ENDPOINTS", url) for url in endpoints]
    return [
        Problem(
            variable,
            url,
            "addresses of other servers",
            f"This is the appliance's own address ({proxy_host}:{proxy_port}): each request would come back "
            "to it. Name the engine's address, or set PROXY_PORT to another port.",
        )
        for variable, url in urls
        if is_own_address(url, proxy_host=proxy_host, proxy_port=proxy_port)
    ]


def check_proxies(environ: Mapping[str, str]) -> list[Problem]:
    """Warn of variables that name no usable proxy; only downloads ask one.

    Args:
        environ: The environment, with the configuration file's `settings`.
    """
    return [
        Problem(
            variable,
            shown,
            "http://host:port or http://user:password@host:port",
            f"{reason} Until then downloads from hosts that are not in NO_PROXY fail. "
            "A name and password stand before the host, with an @ behind them.",
            is_fatal=False,
        )
        for variable, (shown, reason) in Proxies.from_environ(environ).find_unusable().items()
    ]


def is_own_address(url: str, *, proxy_host: str, proxy_port: int) -> bool:
    """Whether a URL leads to what listens on `proxy_host` and `proxy_port`. Names are not looked up.

    1. another port, or port 0, which is no port yet     → no
    2. the same host in other words (localhost, ::1)     → yes
    3. it listens on every address of this machine       → yes for each of these, and for the machine's name
    """
    parts = urlsplit(url)
    host = (parts.hostname or "").lower()
    if (parts.port or DEFAULT_PORTS.get(parts.scheme)) != proxy_port:  # 1
        return False
    own = proxy_host.strip("[]").lower()
    if host == own or (_is_this_machine(host) and _is_this_machine(own)):  # 2
        return True
    return own in ANY_ADDRESS and (  # 3
        _is_this_machine(host) or host == socket.gethostname().lower() or _is_assigned(host)
    )


def _is_this_machine(host: str) -> bool:
    return host == "localhost" or host.endswith(".localhost") or host in ANY_ADDRESS[:2] or is_loopback(host)


def _is_assigned(host: str) -> bool:
    """Whether an IP address is one of this machine's: only those can be bound to."""
    try:
        family = socket.AF_INET6 if ip_address(host).version == 6 else socket.AF_INET
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((host, 0))
    except (ValueError, OSError):
        return False
    return True
