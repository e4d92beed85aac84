"""How an attempt at a server ended, and what that means for breaker, retry and error counters.

The values are the words of receipts and metrics. `Finish` is the other half: how a request ended, as its
client saw it.
"""

from enum import Enum
from typing import Self


class BreakerEffect(Enum):
    """What an outcome tells the circuit breaker of a server."""

    SUCCEEDED = "succeeded"  # the server is well
    FAILED = "failed"  # one failure more
    NONE = "none"  # nothing: the caller left, or the request is not one for this server, or nothing was sent


class Retry(Enum):
    """Under which condition another backend may have the request."""

    NEVER = "never"  # nothing is left to do, or everybody would say the same
    FREE = "free"  # it costs nothing: this server did no work for it
    LARGER_CONTEXT = "larger_context"  # by backends with more context
    BUDGET = "budget"  # as long as the retry budget lasts


class Outcome(Enum):
    """How one attempt ended.

    Attributes:
        breaker: What the circuit breaker learns.
        retry: When another backend may try. (What was never sent may always be sent elsewhere:
            AttemptFailed.retry.)
        is_error: Whether it is counted among the backend's errors.
    """

    breaker: BreakerEffect
    retry: Retry
    is_error: bool

    # The server responded.
    OK = "ok", BreakerEffect.SUCCEEDED, Retry.NEVER, False
    REFUSED = "refused", BreakerEffect.SUCCEEDED, Retry.NEVER, False  # the caller's own fault
    PASSED = "passed", BreakerEffect.SUCCEEDED, Retry.NEVER, False  # passthrough: its time says little

    # The caller left.
    CANCELLED = "cancelled", BreakerEffect.NONE, Retry.NEVER, False  # before the response
    CLIENT_LEFT = "client_left", BreakerEffect.NONE, Retry.NEVER, False  # during the response

    # The server is well, but cannot have this request, now or ever.
    FULL = "full", BreakerEffect.NONE, Retry.FREE, True
    ADAPTER_MISSING = "adapter_missing", BreakerEffect.NONE, Retry.FREE, True
    CONTEXT = "context", BreakerEffect.NONE, Retry.LARGER_CONTEXT, True  # the prompt is too long for it
    KEY_REFUSED = "key_refused", BreakerEffect.NONE, Retry.BUDGET, True  # the operator's key for it
    NOT_FOUND = "status_404", BreakerEffect.NONE, Retry.BUDGET, True
    UNSUPPORTED = "unsupported", BreakerEffect.NONE, Retry.BUDGET, True

    # No response began; the words are the phases of WireError.
    POOL = "pool", BreakerEffect.NONE, Retry.BUDGET, True  # no upstream connection came free
    DNS = "dns", BreakerEffect.FAILED, Retry.BUDGET, True
    CONNECT = "connect", BreakerEffect.FAILED, Retry.BUDGET, True
    TLS = "tls", BreakerEffect.FAILED, Retry.BUDGET, True
    FIRST_BYTE = "first_byte", BreakerEffect.FAILED, Retry.BUDGET, True
    HEAD = "head", BreakerEffect.FAILED, Retry.BUDGET, True  # cut, or no HTTP
    LOST = "lost", BreakerEffect.FAILED, Retry.BUDGET, True  # given up: the server was found to be down
    TOTAL = "total", BreakerEffect.FAILED, Retry.BUDGET, True  # out of time

    # A response began.
    STATUS = "status", BreakerEffect.FAILED, Retry.BUDGET, True  # an error status; rendered with its number
    LOADING = "loading", BreakerEffect.FAILED, Retry.BUDGET, True  # llama.cpp's 503 while its model loads
    IDLE = "idle", BreakerEffect.FAILED, Retry.BUDGET, True  # fell silent
    BROKEN = "broken", BreakerEffect.FAILED, Retry.BUDGET, True  # broke off
    CLOSED = "closed", BreakerEffect.FAILED, Retry.BUDGET, True  # we closed the connection
    INVALID_RESPONSE = "invalid_response", BreakerEffect.FAILED, Retry.BUDGET, True
    ERROR_EVENT = "error_event", BreakerEffect.FAILED, Retry.BUDGET, True
    EMPTY_STREAM = "empty_stream", BreakerEffect.FAILED, Retry.BUDGET, True
    CUT_OFF = "cut_off", BreakerEffect.FAILED, Retry.BUDGET, True  # after the first event went to the client

    # All endpoints of the hosted API failed.
    UPSTREAM = "upstream", BreakerEffect.FAILED, Retry.BUDGET, True
    UNAVAILABLE = "unavailable", BreakerEffect.FAILED, Retry.BUDGET, True
    TIMEOUT = "timeout", BreakerEffect.FAILED, Retry.BUDGET, True

    def __new__(cls, word: str, breaker: BreakerEffect, retry: Retry, is_error: bool) -> Self:
        """Make a member whose value is its word alone."""
        member = object.__new__(cls)
        member._value_ = word
        member.breaker = breaker
        member.retry = retry
        member.is_error = is_error
        return member

    @classmethod
    def of_phase(cls, phase: str) -> "Outcome":
        """Return the outcome of an attempt that failed in `phase` of WireError."""
        return _BY_WORD[phase]

    def render(self, status: int | None) -> str:
        """Return the word for receipts and metrics; `status` is the HTTP status that came, None = none."""
        return f"status_{status}" if self is Outcome.STATUS else self._value_


_BY_WORD: dict[str, Outcome] = {outcome.value: outcome for outcome in Outcome}


class Finish(Enum):
    """How a request ended, as its client saw it."""

    DONE = "done"
    CLIENT_LEFT = "client_left"
    CUT_OFF = "cut_off"  # by a failure after the first byte
    ERROR = "error"
