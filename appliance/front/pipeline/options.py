"""What a request's headers say about where and when it is answered.

X-Request-Priority: high | normal | low     its place in line, when all backends are full
x-appliance-stay-local: 1                   no overflow, no hosted API: this pool's own servers or an error
x-appliance-backend: NAME                   this one backend (operators)
"""

import hashlib
from functools import lru_cache

from appliance.base.errors import Invalid
from appliance.engines.types import RequestOptions
from appliance.front.pipeline.access import read_key

PRIORITIES = {"high": 0, "normal": 1, "low": 2}
YES, NO = {"1", "true", "yes", "on"}, {"", "0", "false", "no", "off"}
KNOWN = YES | NO
PIN = "x-appliance-backend"
STAY = "x-appliance-stay-local"
PRIORITY = "x-request-priority"


def parse_options(headers: dict[str, str], peer: str, *, must_stay_local: bool = False) -> RequestOptions:
    """Read a request's wishes.

    Takes   headers: lower-case names; peer: the caller's address; must_stay_local: the caller's key may not let requests leave
    Raises  Invalid: a header has a value that is not known
    """
    word = headers.get(PRIORITY, "normal").strip().lower()
    if word not in PRIORITIES:
        raise Invalid(
            f"X-Request-Priority must be high, normal or low, not {word[:40]!r}.",
            param="X-Request-Priority",
            code="invalid_header",
        )
    stay = headers.get(STAY, "").strip().lower()
    if stay not in KNOWN:
        raise Invalid(f"{STAY} must be 1 or 0, not {stay[:40]!r}.", param=STAY, code="invalid_header")
    key = read_key(headers)
    flow = hashlib.sha256(key.encode()).hexdigest()[:16] if key else peer
    return _options(flow, PRIORITIES[word], must_stay_local or stay in YES, headers.get(PIN, "").strip())


_options = lru_cache(maxsize=1024)(
    RequestOptions
)  # most callers wish the same again, and nobody can change one
