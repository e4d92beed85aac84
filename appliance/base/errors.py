"""One shallow tree of errors: what went wrong (`Kind`), a text for the caller, whether a retry can help.

Raising code never mentions a status number; the interfaces translate a Kind (`front/pipeline/errors.py`,
`control/errors.py`). An error text never contains a secret: it is shown to callers and written to logs.
"""

import errno
import os
from enum import Enum
from typing import Any, ClassVar


class Kind(Enum):
    """The sort of failure; every interface has one row per kind."""

    INVALID = "invalid"  # the caller's request is wrong; the same request cannot succeed later
    UNAUTHENTICATED = "unauthenticated"  # no key, or a wrong one
    FORBIDDEN = "forbidden"  # the key is known and may not do this
    PAYMENT_REQUIRED = "payment_required"  # the wallet, or a spending limit, does not allow it
    NOT_FOUND = "not_found"
    NO_SUCH_MODEL = "no_such_model"
    CONFLICT = "conflict"  # the present state does not allow it
    TOO_LARGE = "too_large"
    EXHAUSTED = "exhausted"  # a limit or a queue is full; later it may work
    UNSUPPORTED = "unsupported"  # not offered here, now or later
    TIMEOUT = "timeout"  # the time that the caller or a setting allows is over
    UNAVAILABLE = "unavailable"  # no backend can respond at present
    UPSTREAM = "upstream"  # the upstream server failed
    INTERNAL = "internal"  # our own fault


class ApplianceError(Exception):
    """A failure that may be shown to the caller.

    Args:
        message: One sentence: what was wrong and what to do.
        param: The field at fault, dotted (`messages.0.role`); None = no single field.
        code: A short machine-readable word; None = the type's own.
        retry_after_s: When to try again, in seconds; None = unknown.
        details: Extras for operators, ready for JSON; never secrets.
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
    """The request is wrong."""

    kind = Kind.INVALID


class Unauthenticated(ApplianceError):
    """There is no API key, or a wrong one."""

    kind = Kind.UNAUTHENTICATED
    default_code = "invalid_api_key"


class Forbidden(ApplianceError):
    """The caller may not do this."""

    kind = Kind.FORBIDDEN


class PaymentRequired(ApplianceError):
    """The caller's credits, or a limit on spending, do not allow it; waiting does not help."""

    kind = Kind.PAYMENT_REQUIRED
    default_code = "insufficient_credits"


class NotFound(ApplianceError):
    """There is no such thing at this address."""

    kind = Kind.NOT_FOUND
    default_code = "not_found"


class NoSuchModel(ApplianceError):
    """There is no model of this name."""

    kind = Kind.NO_SUCH_MODEL
    default_code = "model_not_found"


class Conflict(ApplianceError):
    """The present state does not allow it."""

    kind = Kind.CONFLICT


class TooLarge(ApplianceError):
    """The request is larger than allowed."""

    kind = Kind.TOO_LARGE
    default_code = "request_too_large"


class Exhausted(ApplianceError):
    """A limit or a queue is full; later it may work."""

    kind = Kind.EXHAUSTED
    retryable = True
    default_code = "rate_limit_exceeded"


class Unsupported(ApplianceError):
    """The appliance does not offer this."""

    kind = Kind.UNSUPPORTED
    default_code = "not_supported"


class TimedOut(ApplianceError):
    """It took longer than allowed."""

    kind = Kind.TIMEOUT
    retryable = True
    default_code = "timeout"


class Unavailable(ApplianceError):
    """Nothing can respond at present."""

    kind = Kind.UNAVAILABLE
    retryable = True
    default_code = "unavailable"


class UpstreamFailed(ApplianceError):
    """An upstream server failed; `details["attempts"]` lists what was tried."""

    kind = Kind.UPSTREAM
    default_code = "upstream_error"


class Internal(ApplianceError):
    """The appliance itself failed."""

    kind = Kind.INTERNAL
    default_code = "internal_error"


WRITE_REMEDIES = {
    errno.ENOSPC: "The disk is full: free some space.",
    errno.EDQUOT: "The disk quota is used up: free some space, or raise it.",
    errno.EROFS: "The file system is read-only: mount it writable.",
    errno.ENOTDIR: "A part of the path is a file, not a folder: move it away.",
    errno.EIO: "The disk does not work: see the kernel's log.",
}


def write_remedy(error: OSError) -> str:
    """Return what to do where a file could not be written, a sentence."""
    return WRITE_REMEDIES.get(error.errno or 0, "Make the folder writable.")


def describe_os_error(error: OSError) -> str:
    """Return why a system call failed, without the error's number.

    1. it names a file                    → its text and that name
    2. asyncio could not bind an address  → the system's words; asyncio's text repeats the address
    3. otherwise                          → the error's text
    """
    text = error.strerror or str(error)
    if error.filename is not None:  # 1
        return f"{text}: {error.filename}"
    if error.errno and text.startswith("error while attempting to bind"):  # 2
        return os.strerror(error.errno)
    return text  # 3
