"""What an unknown address may mean: extra slashes, or a base URL with /v1 twice or without it. Pure."""

import re
from collections.abc import Callable, Sequence

from appliance.front.pipeline.route import Route

_SLASHES = re.compile("//+")
_BASES = re.compile("/(?:v1|api)(?=/)")
_JOINED_BASES = re.compile("/v1/(?:v1|api)/")


def find_meant_route(routes: Sequence[Route], method: str, path: str) -> tuple[Route, dict[str, str]] | None:
    """Find the route that a path means without its doubled and trailing slashes.

    Args:
        routes: The table.
        method: In upper case.
        path: Decoded; it fits no route as it is.

    Returns:
        (the route; the parts of the path by name); None = there is none.
    """
    plain = strip_slashes(path)
    if plain == path:
        return None
    for route in routes:
        if route.serves(method) and (parts := route.match(plain)) is not None:
            return route, parts
    return None


def strip_slashes(path: str) -> str:
    """Return a path without doubled and trailing slashes."""
    return _SLASHES.sub("/", path).rstrip("/") or "/"


def suggest_path(path: str, is_known: Callable[[str], bool]) -> str:
    """Return the address that was probably meant: the same below /v1 or /api; "" = there is none.

    Args:
        path: One that is not in the table.
        is_known: Whether an address is in the table.
    """
    rest, bases = strip_slashes(path), []
    while (found := _BASES.match(rest)) is not None:
        bases.append(found[0])
        rest = rest[found.end() :]
    for base in dict.fromkeys([*reversed(bases), "/v1", "/api"]):
        if base + rest != path and is_known(base + rest):
            return base + rest
    return ""


def has_joined_bases(path: str) -> bool:
    """Whether a path begins with two base URLs; no address of an engine does."""
    return _JOINED_BASES.match(path) is not None
