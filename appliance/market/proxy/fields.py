"""Which header fields go up to a target, and which come down from it."""

from collections.abc import Iterable
from typing import Final

Fields = list[tuple[str, str]]
MAX_FIELDS: Final = 128
HOP_BY_HOP: Final = frozenset(
    (
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    )
)
# Made here (Host, lengths), the appliance's own keys and ids, and what says who asks.
NOT_UP: Final = HOP_BY_HOP | {
    "accept-encoding",
    "content-length",
    "cookie",
    "expect",
    "forwarded",
    "host",
    "via",
    "x-api-key",
    "x-billing",
    "x-preferred-payment",
    "x-real-ip",
    "x-timelimit",
}
NOT_DOWN: Final = HOP_BY_HOP | {
    "set-cookie",
    "set-cookie2",
    "alt-svc",
    "strict-transport-security",
    "clear-site-data",
}
# What goes along to another host where a target redirects: any other field may hold a secret.
PLAIN: Final = frozenset(("accept", "accept-language", "content-type", "user-agent"))


def fields_up(fields: Iterable[tuple[str, str]], *, own_keys: Iterable[str] = ()) -> Fields:
    """Return the fields that go up to the target.

    Args:
        fields: As the caller wrote them in `headers`.
        own_keys: The credentials by which the caller is known here: a field with one of them is dropped.
    """
    keys = [key for key in own_keys if key]
    kept = []
    for name, value in fields:
        lower = name.lower()
        if lower in NOT_UP or lower.startswith(("x-forwarded-", "x-appliance-", "proxy-")):
            continue
        if not any(key in value for key in keys):
            kept.append((name, value))
    return [*kept, ("Accept-Encoding", "identity")]


def fields_down(fields: Iterable[tuple[str, str]]) -> Fields:
    """Return the fields that come down from the target."""
    found = list(fields)
    named = {
        one.strip().lower()
        for name, value in found
        if name.lower() == "connection"
        for one in value.split(",")
    }
    return [(name, value) for name, value in found if name.lower() not in NOT_DOWN | named][:MAX_FIELDS]


def join_fields(fields: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Return fields for JSON: names as they were sent, several of one name joined by commas."""
    joined: dict[str, str] = {}
    spelling: dict[str, str] = {}
    for name, value in fields:
        known = spelling.setdefault(name.lower(), name)
        joined[known] = f"{joined[known]}, {value}" if known in joined else value
    return joined


def for_another_host(fields: Iterable[tuple[str, str]]) -> Fields:
    """Return the fields that another host may see: a redirect must not carry credentials there."""
    return [(name, value) for name, value in fields if name.lower() in PLAIN]


def content_type_of(fields: Iterable[tuple[str, str]]) -> str:
    """Return the type of a body; "" = it is not said."""
    return next((value for name, value in fields if name.lower() == "content-type"), "")
