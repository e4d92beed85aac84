"""The types of settings that are more than a text or a number: how they are written, and what is refused."""

import re
from ipaddress import ip_address
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator

from appliance.base.go_durations import sum_terms_s

TRUE_WORDS = {"1", "true", "yes", "on"}
FALSE_WORDS = {"0", "false", "no", "off"}
HOST = "an IP address of this machine, or its name"
_HOST_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,252}")
_REMOTE_NAME = re.compile(r"\w[\w.-]{0,252}")  # with letters of any language: they are looked up as IDNA
_DURATION = re.compile(r"(?:\d{1,9}(?:\.\d{1,9})?(?:ns|us|µs|ms|s|m|h))+")


def _split(separator: str, value: Any) -> Any:
    if isinstance(value, str):
        return [piece.strip() for piece in value.split(separator) if piece.strip()]
    return value


def _switch(value: Any) -> Any:
    if isinstance(value, str):
        word = value.strip().lower()
        if word in TRUE_WORDS:
            return True
        if word in FALSE_WORDS:
            return False
        raise ValueError("expected 1 or 0 (also true/false, yes/no, on/off)")
    return value


def is_remote_host(text: str) -> bool:
    """Whether a text may be the host of another machine: an IP address without brackets, or a name."""
    if ":" in text:
        try:
            ip_address(text)
        except ValueError:
            return False
        return True
    return _REMOTE_NAME.fullmatch(text) is not None


def _check_host(value: str) -> str:
    """Return an address to listen on; a name is not looked up.

    1. an IP address, also in brackets           → that
    2. what only an IP address can look like     → refused
    3. a name                                    → that
    """
    bare = value[1:-1] if value.startswith("[") and value.endswith("]") else value
    try:
        ip_address(bare)
    except ValueError:
        if _HOST_NAME.fullmatch(value) and not value.rpartition(".")[2].isdecimal():  # 3
            return value
        raise ValueError("this is neither an IP address, such as 127.0.0.1 or ::1, nor a name") from None  # 2
    return bare  # 1


def check_address(value: str) -> str:
    """Return the http(s) address of a server, without the slash at its end; "" stays.

    Raises:
        ValueError: It is none, or holds credentials, a query or a fragment.
    """
    if not value:
        return value
    parts = urlsplit(value)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ValueError(f"{value[:200]!r} is not an http(s) address")
    if not is_remote_host(parts.hostname):
        raise ValueError(f"{parts.hostname[:200]!r} is no host: it must be a name or an IP address")
    _ = parts.port  # raises ValueError where it is no port
    if parts.username or parts.password:
        raise ValueError("an address must not hold credentials")
    if parts.query or parts.fragment:
        raise ValueError("an address must not hold '?' or '#'")
    return value.rstrip("/")


def _seconds(value: Any) -> Any:
    """Take seconds, or a duration as Go writes it: 90, 1m30s, 1.5h, 250ms."""
    if isinstance(value, str) and _DURATION.fullmatch(value):
        return sum_terms_s(value)
    return value


CommaList = Annotated[list[str], BeforeValidator(lambda v: _split(",", v))]
SemicolonList = Annotated[list[str], BeforeValidator(lambda v: _split(";", v))]
Switch = Annotated[bool, BeforeValidator(_switch)]
ListenHost = Annotated[str, AfterValidator(_check_host)]
HttpAddress = Annotated[str, AfterValidator(check_address)]
DurationS = Annotated[float, BeforeValidator(_seconds)]


def duration(default_text: str = "") -> dict[str, Any]:
    """Return the `json_schema_extra` of a setting of the type DurationS.

    Args:
        default_text: Its default, as people write it.
    """
    extra = {"allowed": "seconds, or a duration such as 250ms, 30s, 1m30s, 24h", "is_text": True}
    return extra | {"default_text": default_text} if default_text else extra
