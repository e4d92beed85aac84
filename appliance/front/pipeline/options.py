"""How a request is routed, from its headers.

X-Request-Priority: high | normal | low   its priority in the queue, when all backends are full
x-appliance-stay-local: 1                 own servers of the pool only: no overflow, no hosted API
x-appliance-backend: NAME                 this backend only (operators)
X-Conversation-Id: TEXT                   handed on to the engine
X-Timelimit: 30s                          the whole response has to be there by then
"""

import hashlib
from dataclasses import replace
from functools import lru_cache

from appliance.base.errors import Invalid
from appliance.base.time_limit import HEADER, parse_time_limit_s
from appliance.engines.types import RequestOptions
from appliance.front.pipeline.access import read_key

PRIORITIES = {"high": 0, "normal": 1, "low": 2}
YES, NO = {"1", "true", "yes", "on"}, {"", "0", "false", "no", "off"}
PIN = "x-appliance-backend"
STAY = "x-appliance-stay-local"
PRIORITY = "x-request-priority"
CONVERSATION = "x-conversation-id"
MAX_CONVERSATION_CHARS = 512


def parse_options(headers: dict[str, str], peer: str, *, must_stay_local: bool = False) -> RequestOptions:
    """Read a request's options.

    Args:
        headers: By lower-case name.
        peer: The caller's address; without a key it is the caller's identity in the fair queue.
        must_stay_local: The caller's key allows own servers only.

    Raises:
        Invalid: A header has a value that is not allowed.
    """
    priority = PRIORITIES["normal"] if PRIORITY not in headers else _parse_priority(headers[PRIORITY])
    is_local_only = (STAY in headers and _parse_stay(headers[STAY])) or must_stay_local
    pin = "" if PIN not in headers else headers[PIN].strip()
    key = read_key(headers)
    flow = hashlib.sha256(key.encode()).hexdigest()[:16] if key else peer
    options = _options(flow, priority, is_local_only, pin)
    if HEADER in headers:
        options = replace(options, time_limit_s=parse_time_limit_s(headers[HEADER]) or 0.0)
    if CONVERSATION in headers:  # not one of the cached: it is another one with each conversation
        return replace(options, header_lines=_render_conversation(headers[CONVERSATION]))
    return options


def _parse_priority(value: str) -> int:
    word = value.strip().lower()
    if word not in PRIORITIES:
        raise Invalid(
            f"X-Request-Priority must be high, normal or low, not {word[:40]!r}.",
            param="X-Request-Priority",
            code="invalid_header",
        )
    return PRIORITIES[word]


def _parse_stay(value: str) -> bool:
    word = value.strip().lower()
    if word not in YES and word not in NO:
        raise Invalid(f"{STAY} must be 1 or 0, not {word[:40]!r}.", param=STAY, code="invalid_header")
    return word in YES


def _render_conversation(value: str) -> bytes:
    if len(value) > MAX_CONVERSATION_CHARS or not (value.isascii() and value.isprintable()):
        raise Invalid(
            f"X-Conversation-Id must be at most {MAX_CONVERSATION_CHARS} printable ASCII characters, not "
            f"{value[:40]!a}.",
            param="X-Conversation-Id",
            code="invalid_header",
        )
    return f"X-Conversation-Id: {value}\r\n".encode()


# Most callers send the same options with every request; the objects are immutable.
_options = lru_cache(maxsize=1024)(RequestOptions)
