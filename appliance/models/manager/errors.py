"""Why a model cannot serve a request now. Raised by the manager, rendered by each interface.

`error_type` and `error_fields` in an error's details are what OpenAI's error object carries beyond its own
four fields.
"""

from collections.abc import Sequence

from appliance.base.errors import TimedOut, Unavailable


class InsufficientMemory(Unavailable):
    """The model does not fit, even if every model that may be unloaded were.

    Args:
        model: Its alias.
        required_mb: Mebibytes that a load needs, the reserve included.
        available_mb: Mebibytes that can be made free at most.
        loaded_models: Aliases of the models that hold memory now.
        retry_after_s: When memory may be free; None = not known.

    Source:
        docs/compatibility.md, `insufficient_vram_error`.
    """

    default_code = "vram_exhausted"

    def __init__(
        self,
        model: str,
        *,
        required_mb: float,
        available_mb: float,
        loaded_models: Sequence[str] = (),
        retry_after_s: float | None = None,
    ) -> None:
        loaded = f" beside {', '.join(loaded_models)}" if loaded_models else ""
        super().__init__(
            f"Not enough memory to load model {model!r}: {required_mb:.0f} MB needed, {available_mb:.0f} MB "
            f"available{loaded}. Retry later, unload a model, or lower its context (n_ctx).",
            retry_after_s=retry_after_s,
            details={
                "error_type": "insufficient_vram_error",
                "error_fields": {
                    "model": model,
                    "required_mb": round(required_mb),
                    "available_mb": round(available_mb),
                    "loaded_models": list(loaded_models),
                },
            },
        )


class QueueFull(Unavailable):
    """The queue of a model has as many requests as it may have.

    Args:
        model: Its alias.
        limit: `max_queue_size_per_model`.
        retry_after_s: When a place in the queue may be free.
    """

    default_code = "queue_full"

    def __init__(self, model: str, *, limit: int, retry_after_s: float) -> None:
        super().__init__(
            f"The queue of model {model!r} is full (max_queue_size_per_model = {limit}). "
            f"Retry in {max(1, round(retry_after_s))} s.",
            retry_after_s=retry_after_s,
            details={"error_fields": {"model": model, "queue_limit": limit}},
        )


class QueueTimeout(TimedOut):
    """A request got no slot within `queue_timeout_sec`.

    Args:
        model: Its alias.
        waited_s: How long the request waited.
        retry_after_s: When a slot may be free; None = not known.
        reason: What its queue waits for, as the scheduler said last; "" = not known.
    """

    default_code = "queue_timeout"

    def __init__(
        self, model: str, *, waited_s: float, retry_after_s: float | None = None, reason: str = ""
    ) -> None:
        because = f" Last state: {reason}." if reason else ""
        super().__init__(
            f"No slot of model {model!r} became free within {waited_s:.1f} s (queue_timeout_sec).{because}",
            retry_after_s=retry_after_s,
            details={"error_fields": {"model": model, "waited_s": round(waited_s, 3)}},
        )


class ModelFailed(Unavailable):
    """A model could not be loaded, and is not tried again until it is reset.

    Args:
        model: Its alias.
        reason: Why its latest load failed.
        attempts: Failures in a row.
    """

    retryable = False
    default_code = "model_failed"

    def __init__(self, model: str, *, reason: str, attempts: int) -> None:
        count = f"{attempts} attempt{'' if attempts == 1 else 's'}"
        super().__init__(
            f"Model {model!r} could not be loaded ({count}): {reason.strip().rstrip('.')}. "
            f"Fix the cause, then POST /v1/models/{model}/reset to try again.",
            details={"error_fields": {"model": model, "attempts": attempts}},
        )


class AllPinned(Unavailable):
    """The pinned models reach the limit of loaded models, so that waiting cannot help.

    Args:
        model: The alias of the model that cannot be loaded.
        limit: `max_concurrent_models`.
        pinned: Aliases of the pinned models.
    """

    retryable = False
    default_code = "places_pinned"

    def __init__(self, model: str, *, limit: int, pinned: Sequence[str]) -> None:
        super().__init__(
            f"Model {model!r} cannot be loaded: pinned models use the whole limit "
            f"(max_concurrent_models = {limit}): {', '.join(pinned)}. Unpin one, or raise the limit.",
            details={"error_fields": {"model": model, "pinned_models": list(pinned)}},
        )


class GroupPinned(Unavailable):
    """Pinned models are loaded that are never loaded together with the model, so that waiting cannot help.

    Args:
        model: The alias of the model that cannot be loaded.
        pinned: Aliases of these models.
    """

    retryable = False
    default_code = "group_pinned"

    def __init__(self, model: str, *, pinned: Sequence[str]) -> None:
        super().__init__(
            f"Model {model!r} cannot be loaded: the pinned {', '.join(pinned)} may not be loaded beside it "
            "(`groups` of the model table). Unpin it, or change the groups.",
            details={"error_fields": {"model": model, "pinned_models": list(pinned)}},
        )


class ShuttingDown(Unavailable):
    """The appliance is shutting down."""

    default_code = "shutting_down"

    def __init__(self) -> None:
        super().__init__("The server is shutting down.")
