"""What a caller asks the proxy for: `{protocol, target_url, method, headers, body, timeout, …}`."""

import re
from dataclasses import dataclass, field
from typing import Any, Final, Literal, cast

from appliance.base.errors import Invalid, Unsupported
from appliance.base.time_limit import parse_time_limit_s

PROTOCOLS: Final = ("http", "https", "mcp", "openinference")
FIELDS: Final = (
    "protocol",
    "target_url",
    "method",
    "headers",
    "body",
    "timeout",
    "stream_response",
    "follow",
)
METHODS: Final = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
MAX_HEADERS: Final = 64
MAX_VALUE_CHARACTERS: Final = 8192
_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,128}")
_VALUE: Final = re.compile(r"[\t\x20-\x7e\x80-\xff]*")
Protocol = Literal["http", "https", "mcp", "openinference"]


@dataclass(frozen=True, slots=True)
class ProxyOrder:
    """One request for a target.

    Attributes:
        method: In upper case.
        headers: As the caller wrote them; see `fields`.
        body: JSON; None = none.
        timeout_s: None = as long as is allowed.
        is_streamed: The target's body is passed on as it arrives.
        is_following: Redirects are followed.
    """

    protocol: Protocol
    target_url: str
    method: str = "POST"
    headers: tuple[tuple[str, str], ...] = ()
    body: Any = field(default=None, repr=False)
    timeout_s: float | None = None
    is_streamed: bool = False
    is_following: bool = False


def read_order(fields: dict[str, Any]) -> ProxyOrder:
    """Read an order.

    Args:
        fields: The body's JSON object.

    Raises:
        Invalid: A field is unknown, missing or wrong.
        Unsupported: What is asked for is not offered by this protocol.
    """
    for name in fields:
        if name not in FIELDS:
            raise Invalid(
                f"There is no field {name[:40]!r} here; there are {', '.join(FIELDS)}.",
                param=name[:40],
                code="unknown_field",
            )
    missing = [name for name in ("protocol", "target_url") if fields.get(name) in (None, "")]
    if missing:
        raise Invalid("Missing required fields", code="missing_fields", details={"needed": missing})
    protocol, target_url, method = fields["protocol"], fields["target_url"], fields.get("method")
    if not isinstance(protocol, str) or protocol.lower() not in PROTOCOLS:
        raise _wrong("protocol", f"must be one of {', '.join(PROTOCOLS)}")
    if not isinstance(target_url, str):
        raise _wrong("target_url", "must be a text")
    if method in (None, ""):
        method = "POST"
    if not isinstance(method, str) or method.upper() not in METHODS:
        raise _wrong("method", f"must be one of {', '.join(METHODS)}")
    order = ProxyOrder(
        cast("Protocol", protocol.lower()),
        target_url,
        method.upper(),
        _read_headers(fields.get("headers")),
        fields.get("body"),
        parse_time_limit_s(fields.get("timeout"), name="timeout"),
        _read_switch(fields, "stream_response"),
        _read_switch(fields, "follow"),
    )
    if order.protocol in ("mcp", "openinference") and (order.is_streamed or order.is_following):
        name = "stream_response" if order.is_streamed else "follow"
        raise Unsupported(
            f"`{name}` is not offered with the protocol {order.protocol}; it is with http and https.",
            param=name,
        )
    return order


def _read_headers(value: Any) -> tuple[tuple[str, str], ...]:
    if value is None:
        return ()
    if not isinstance(value, dict) or len(value) > MAX_HEADERS:
        raise _wrong("headers", f"must be an object of up to {MAX_HEADERS} texts by name")
    for name, text in value.items():
        if _TOKEN.fullmatch(name) is None:
            raise _wrong("headers", "has a name that is none of a header field")
        if not isinstance(text, str) or len(text) > MAX_VALUE_CHARACTERS or _VALUE.fullmatch(text) is None:
            raise _wrong(
                "headers", f"has a value that is no text of up to {MAX_VALUE_CHARACTERS} printable characters"
            )
    return tuple((name, text.strip()) for name, text in value.items())


def _read_switch(fields: dict[str, Any], name: str) -> bool:
    value = fields.get(name)
    if value is None or isinstance(value, bool):
        return bool(value)
    raise _wrong(name, "must be true or false")


def _wrong(name: str, what: str) -> Invalid:
    return Invalid(f"`{name}` {what}.", param=name, code="invalid_value")
