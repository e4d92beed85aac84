"""The errors for a request that no backend answered. Pure."""

from collections.abc import Collection

from appliance.base.errors import (
    ApplianceError,
    Exhausted,
    Invalid,
    TimedOut,
    Unavailable,
    UpstreamFailed,
)
from appliance.engines.backends.contract import Backend
from appliance.engines.dispatch_request import DispatchRequest
from appliance.engines.outcome import Outcome, Retry
from appliance.engines.receipts import attempt_rows
from appliance.engines.types import BackendStatus
from appliance.engines.upstream.attempt import AttemptFailed
from appliance.engines.upstream.refusal import context_error

Failure = AttemptFailed | ApplianceError
TIMEOUTS = {Outcome.FIRST_BYTE, Outcome.TOTAL, Outcome.IDLE}
MAX_RETRY_AFTER_S = 30.0
NAMED_BACKENDS = 8  # in one error text


def estimate_retry_after_s(candidates: Collection[Backend], waiting: int) -> float:
    """Estimate when there will be capacity, from the requests in the queues and the mean response time.

    Args:
        candidates: The backends that could answer.
        waiting: Requests in the queues.

    Returns:
        Seconds, 1 to MAX_RETRY_AFTER_S.
    """
    times = [backend.member.mean_s for backend in candidates if backend.member.mean_s]
    mean_s = sum(times) / len(times) if times else 1.0
    at_a_time = max(1, sum(backend.member.active for backend in candidates))
    return min(MAX_RETRY_AFTER_S, max(1.0, mean_s * (waiting + 1) / at_a_time))


def queue_full(queue_limit: int, retry_after_s: float) -> Exhausted:
    """Return the error for a request that cannot wait, because the queue is full."""
    return Exhausted(
        "The request queue is full (QUEUE_LIMIT)."
        if queue_limit
        else "Every backend is full, and requests do not wait (QUEUE_LIMIT is 0).",
        code="queue_full",
        retry_after_s=retry_after_s,
    )


def queue_timeout(request: DispatchRequest, waited_s: float, retry_after_s: float) -> Unavailable:
    """Return the error for a request that got no slot in time."""
    return Unavailable(
        f"No backend had capacity within {waited_s:.0f} seconds (QUEUE_TIMEOUT_S).",
        code="queue_timeout",
        retry_after_s=retry_after_s,
        details={"attempts": attempt_rows(request.receipt.attempts)},
    )


def no_backend(request: DispatchRequest, now_s: float) -> ApplianceError:
    """Return the error that says why no backend can answer.

    1. all have too small a context for it
    2. only a hosted API could, and the request must stay local
    3. none is up
    """
    options = request.options
    serving = [backend for pool in request.stages for backend in pool.serving(request.model)]
    largest = max((backend.context_tokens for backend in serving), default=0)
    if 0 < largest < options.context_tokens and not any(request.candidates()):  # 1
        return Invalid(
            f"The request asks for a context of {options.context_tokens} tokens (num_ctx); "
            f"the model {request.receipt.public_model!r} has at most {largest} here. "
            "Ask for less, or leave num_ctx out.",
            code="context_length_exceeded",
            param="num_ctx",
            details={"prompt_tokens": options.context_tokens, "context_tokens": largest},
        )
    if options.is_local_only and any(backend.is_remote for backend in serving):  # 2
        return Unavailable(
            "No local backend can answer, and the request may not leave this machine "
            "(x-appliance-stay-local).",
            code="stay_local",
            retry_after_s=5,
        )
    states = {backend.name: backend.status(now_s).value for backend in serving}  # 3
    named = ", ".join(f"{name} is {state}" for name, state in list(states.items())[:NAMED_BACKENDS])
    return Unavailable(
        f"No backend available: {named}." if named else "No backend available.",
        code="no_backend",
        retry_after_s=2,
        details={"backends": states},
    )


def all_failed(request: DispatchRequest, failure: Failure, retry_after_s: float) -> ApplianceError:
    """Return the error for a request that failed on every backend that was tried.

    1. the error that the backend gave itself       4. an engine's own sentence
    2. too long a prompt, with the largest context  5. out of time
    3. full                                         6. not reached, or anything else

    Args:
        request: Its receipt lists the attempts.
        failure: The failure of the last attempt.
        retry_after_s: For the client, if the backend sent no Retry-After.
    """
    if isinstance(failure, ApplianceError):  # 1
        return failure
    if failure.context is not None:  # 2
        prompt_tokens, context_tokens = failure.context
        if failure.error is not None and failure.sentence and context_tokens >= request.context_over:
            return failure.error
        return context_error(
            prompt_tokens, max(context_tokens, request.context_over), model=request.receipt.public_model
        )
    if failure.error is not None:  # 1
        return failure.error
    attempts = attempt_rows(request.receipt.attempts)
    details = {"attempts": attempts}
    if failure.outcome.retry is Retry.FREE:  # 3
        return Exhausted(
            "Every backend that could be asked is full.",
            code="backends_full",
            retry_after_s=failure.retry_after_s or retry_after_s,
            details=details,
        )
    if failure.sentence and failure.outcome in {Outcome.ENGINE_ERROR, Outcome.ERROR_EVENT}:  # 4
        return UpstreamFailed(failure.sentence, code="upstream_error", details=details)
    tried = f"{len(attempts)} tried, the last: {failure.label}"
    if failure.outcome in TIMEOUTS and failure.is_timeout:  # 5
        row = attempts[-1] if attempts else {}
        note = row.get("error") or row.get("body") or ""
        text = f"{tried}, {note}" if note else tried
        return TimedOut(f"No backend answered in time ({text}).", details=details)
    if failure.outcome is Outcome.CONNECT:  # 6
        return Unavailable(
            f"No backend available: none could be reached ({tried}).",
            code="no_backend",
            retry_after_s=2,
            details=details,
        )
    if attempts and attempts[-1].get("error"):  # no response came
        tried += f", {attempts[-1]['error']}"
    return UpstreamFailed(f"No backend could answer ({tried}).", code="upstream_error", details=details)  # 6


def overflow_reason(first: Collection[Backend], is_tried: bool, now_s: float) -> str:
    """Return why a request left its first pool: `full`, `failed` or `down`.

    Args:
        first: The first pool's backends for the model.
        is_tried: One of them was tried, and failed.
        now_s: Monotonic seconds.
    """
    if any(backend.status(now_s) is BackendStatus.FULL for backend in first):
        return "full"
    return "failed" if is_tried else "down"
