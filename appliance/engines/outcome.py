"""How an attempt at a server ended, and what that means for breaker, retry and error counters.

The values are shown in receipts and metrics. `Finish` is the other side: how a request ended for its client.
"""

from enum import Enum
from typing import Self


class BreakerEffect(Enum):
    """What an outcome means for the circuit breaker of a server."""

    SUCCEEDED = "succeeded"  # closes the circuit
    FAILED = "failed"  # counts as a failure
    UNDECIDED = "undecided"  # a failure only if it is confirmed (Breaker.record_undecided)
    NONE = "none"  # the client left, the request does not fit this server, or nothing was sent


class Retry(Enum):
    """On which condition the request may be sent to another backend."""

    NEVER = "never"  # the request is done, or every backend would answer the same
    FREE = "free"  # always: this server did no work for it
    LARGER_CONTEXT = "larger_context"  # only to backends with more context
    BUDGET = "budget"  # while the retry budget lasts


SHOWN_BY_STATUS = ("status", "engine_error")  # values of Outcome


class Outcome(Enum):
    """How one attempt ended.

    Attributes:
        breaker: What it means for the circuit breaker.
        retry: When another backend may try. (A request that was never sent may always be sent elsewhere, see
            AttemptFailed.retry.)
        is_error: Whether it is counted among the backend's errors.
        label: As receipts and metrics show it; None = by its HTTP status.
    """

    breaker: BreakerEffect
    retry: Retry
    is_error: bool
    label: str | None

    # The server responded.
    OK = "ok", BreakerEffect.SUCCEEDED, Retry.NEVER, False
    REFUSED = "refused", BreakerEffect.NONE, Retry.NEVER, False  # the client's own fault
    PASSED = (
        "passed",
        BreakerEffect.SUCCEEDED,
        Retry.NEVER,
        False,
    )  # passthrough: not counted in the response times

    # The client left.
    CANCELLED = "cancelled", BreakerEffect.NONE, Retry.NEVER, False  # before the response
    CLIENT_LEFT = "client_left", BreakerEffect.NONE, Retry.NEVER, False  # during the response

    # The server is healthy, but cannot answer this request, now or ever.
    FULL = "full", BreakerEffect.NONE, Retry.FREE, True
    ADAPTER_MISSING = "adapter_missing", BreakerEffect.NONE, Retry.FREE, True
    CONTEXT = "context", BreakerEffect.NONE, Retry.LARGER_CONTEXT, True  # the prompt is too long for it
    KEY_REFUSED = "key_refused", BreakerEffect.NONE, Retry.BUDGET, True  # the key that is configured for it
    NOT_FOUND = "status_404", BreakerEffect.NONE, Retry.BUDGET, True
    UNSUPPORTED = "unsupported", BreakerEffect.NONE, Retry.FREE, True

    # No response began; the values are the phases of WireError.
    POOL = "pool", BreakerEffect.NONE, Retry.BUDGET, True  # no upstream connection became free
    DNS = "dns", BreakerEffect.FAILED, Retry.BUDGET, True
    CONNECT = "connect", BreakerEffect.FAILED, Retry.BUDGET, True
    TLS = "tls", BreakerEffect.FAILED, Retry.BUDGET, True
    FIRST_BYTE = "first_byte", BreakerEffect.FAILED, Retry.BUDGET, True
    HEAD = "head", BreakerEffect.FAILED, Retry.BUDGET, True  # cut off, or not HTTP
    LOST = "lost", BreakerEffect.FAILED, Retry.BUDGET, True  # given up: a probe found the server down
    TOTAL = "total", BreakerEffect.FAILED, Retry.BUDGET, True  # out of time

    # A response began and failed.
    STATUS = "status", BreakerEffect.FAILED, Retry.BUDGET, True  # rendered with its number
    # a 500 whose JSON body has a sentence that is in no table; rendered with its number, as STATUS
    ENGINE_ERROR = "engine_error", BreakerEffect.UNDECIDED, Retry.BUDGET, True
    LOADING = "loading", BreakerEffect.FAILED, Retry.BUDGET, True  # llama.cpp's 503 while its model loads
    IDLE = "idle", BreakerEffect.FAILED, Retry.BUDGET, True  # no more bytes in time
    BROKEN = "broken", BreakerEffect.FAILED, Retry.BUDGET, True  # cut off
    CLOSED = "closed", BreakerEffect.FAILED, Retry.BUDGET, True  # closed by the appliance
    INVALID_RESPONSE = "invalid_response", BreakerEffect.FAILED, Retry.BUDGET, True
    ERROR_EVENT = "error_event", BreakerEffect.UNDECIDED, Retry.BUDGET, True
    EMPTY_STREAM = "empty_stream", BreakerEffect.FAILED, Retry.BUDGET, True
    CUT_OFF = "cut_off", BreakerEffect.FAILED, Retry.BUDGET, True  # after the first event went to the client

    # All endpoints of the hosted API failed.
    UPSTREAM = "upstream", BreakerEffect.FAILED, Retry.BUDGET, True
    UNAVAILABLE = "unavailable", BreakerEffect.FAILED, Retry.BUDGET, True
    TIMEOUT = "timeout", BreakerEffect.FAILED, Retry.BUDGET, True

    def __new__(cls, value: str, breaker: BreakerEffect, retry: Retry, is_error: bool) -> Self:
        """Make a member whose value is the string alone."""
        member = object.__new__(cls)
        member._value_ = value
        member.breaker = breaker
        member.retry = retry
        member.is_error = is_error
        member.label = None if value in SHOWN_BY_STATUS else value
        return member

    @classmethod
    def of_phase(cls, phase: str) -> "Outcome":
        """Return the outcome of an attempt that failed in `phase` of WireError."""
        return _BY_VALUE[phase]

    def render(self, status: int | None) -> str:
        """Return the outcome as receipts and metrics show it; `status` is the HTTP status, None = none."""
        return self.label or f"status_{status}"


_BY_VALUE: dict[str, Outcome] = {outcome.value: outcome for outcome in Outcome}


class Finish(Enum):
    """How a request ended, as its client saw it."""

    DONE = "done"
    CLIENT_LEFT = "client_left"
    CUT_OFF = "cut_off"  # by a failure after the first byte
    ERROR = "error"
