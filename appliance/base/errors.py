"""One shallow tree of errors: what went wrong (Kind), in words for the caller, and whether trying again can help.

Raising code never mentions a status number; the doors translate a Kind (`front/pipeline/errors.py`, `control/errors.py`).
An error text never carries a secret: it is shown to callers and written to logs.
"""

from enum import Enum
from typing import Any, ClassVar


class Kind(Enum):
    """What sort of failure it is; every door has one row per kind."""

    INVALID = "invalid"  # the caller's request is wrong; asking again the same way cannot help
    UNAUTHENTICATED = "unauthenticated"  # no key, or a wrong one
    FORBIDDEN = "forbidden"  # the key is known and may not do this
    NOT_FOUND = "not_found"
    NO_SUCH_MODEL = "no_such_model"
    CONFLICT = "conflict"  # the present state does not allow it
    TOO_LARGE = "too_large"
    EXHAUSTED = "exhausted"  # a limit or a queue is full; later it may work
    UNSUPPORTED = "unsupported"  # we will never do this here
    TIMEOUT = "timeout"  # the caller's own patience, or the time budget, ran out
    UNAVAILABLE = "unavailable"  # nothing can answer at present
    UPSTREAM = "upstream"  # whoever answers for us failed
    INTERNAL = "internal"  # our own fault


class ApplianceError(Exception):
    """A failure that may be shown to the caller.

    Takes   message: one sentence, what was wrong and what to do; param: the field at fault, dotted (`messages.0.role`);
            code: a short machine-readable word; retry_after_s: when to come back, None = unknown;
            details: JSON-able extras for operators (never secrets)
    """

    kind: ClassVar[Kind] = Kind.INTERNAL
    retryable: ClassVar[bool] = False  # "no" unless the type says otherwise
    default_code: ClassVar[str | None] = None

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: float | None = None,
        details: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code or self.default_code
        self.retry_after_s = retry_after_s
        self.details = details or {}


class Invalid(ApplianceError):
    kind = Kind.INVALID


class Unauthenticated(ApplianceError):
    kind = Kind.UNAUTHENTICATED
    default_code = "invalid_api_key"


class Forbidden(ApplianceError):
    kind = Kind.FORBIDDEN


class NotFound(ApplianceError):
    kind = Kind.NOT_FOUND
    default_code = "not_found"


class NoSuchModel(ApplianceError):
    kind = Kind.NO_SUCH_MODEL
    default_code = "model_not_found"


class Conflict(ApplianceError):
    kind = Kind.CONFLICT


class TooLarge(ApplianceError):
    kind = Kind.TOO_LARGE
    default_code = "request_too_large"


class Exhausted(ApplianceError):
    kind = Kind.EXHAUSTED
    retryable = True
    default_code = "rate_limit_exceeded"


class Unsupported(ApplianceError):
    kind = Kind.UNSUPPORTED
    default_code = "not_supported"


class TimedOut(ApplianceError):
    kind = Kind.TIMEOUT
    retryable = True
    default_code = "timeout"


class Unavailable(ApplianceError):
    kind = Kind.UNAVAILABLE
    retryable = True
    default_code = "unavailable"


class UpstreamFailed(ApplianceError):
    """Whoever answers for us failed; `details["attempts"]` lists what was tried."""

    kind = Kind.UPSTREAM
    default_code = "upstream_error"


class Internal(ApplianceError):
    kind = Kind.INTERNAL
    default_code = "internal_error"
