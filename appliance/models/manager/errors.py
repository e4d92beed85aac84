"""Why a model cannot answer now: the memory, the line, the patience, the model itself. Raised by the manager, said by every door.

`error_type` and `error_fields` in an error's details are what OpenAI's error object carries beyond its own four fields.
"""

from collections.abc import Sequence

from appliance.base.errors import TimedOut, Unavailable


class InsufficientMemory(Unavailable):
    """The model does not fit beside what is loaded and in use.

    Takes   required_mb, available_mb: mebibytes, the reserve counted in; loaded_models: aliases that hold memory now;
            retry_after_s: when memory may be free, None = not known
    Source  system D, `insufficient_vram_error`
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
            f"There is not enough memory to load {model!r}: it needs {required_mb:.0f} MB, {available_mb:.0f} MB are free{loaded}. "
            "Try again later, unload a model, or give it less context (n_ctx).",
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
    """The model's line has all the requests it may have (`max_queue_size_per_model`)."""

    default_code = "queue_full"

    def __init__(self, model: str, *, limit: int, retry_after_s: float) -> None:
        super().__init__(
            f"{limit} requests wait for {model!r} already; try again in {max(1, round(retry_after_s))} s.",
            retry_after_s=retry_after_s,
            details={"error_fields": {"model": model, "queue_limit": limit}},
        )


class QueueTimeout(TimedOut):
    """The request stood in the model's line for all of its time (`queue_timeout_sec`)."""

    default_code = "queue_timeout"

    def __init__(
        self, model: str, *, waited_s: float, retry_after_s: float | None = None, reason: str = ""
    ) -> None:
        because = f" Last, {reason}." if reason else ""
        super().__init__(
            f"The request waited {waited_s:.1f} s for {model!r} and had no turn.{because}",
            retry_after_s=retry_after_s,
            details={"error_fields": {"model": model, "waited_s": round(waited_s, 3)}},
        )


class ModelFailed(Unavailable):
    """The model could not be loaded, and is not tried again until it is reset; asking again cannot help before."""

    retryable = False
    default_code = "model_failed"

    def __init__(self, model: str, *, reason: str, attempts: int) -> None:
        super().__init__(
            f"{model!r} could not be loaded ({attempts} attempt{'' if attempts == 1 else 's'}): {reason.strip().rstrip('.')}. When the cause "
            f"is mended, POST /v1/models/{model}/reset lets it be tried again.",
            details={"error_fields": {"model": model, "attempts": attempts}},
        )


class AllPinned(Unavailable):
    """Pinned models hold every place (`max_concurrent_models`): nothing will change by waiting."""

    retryable = False
    default_code = "places_pinned"

    def __init__(self, model: str, *, places: int, pinned: Sequence[str]) -> None:
        super().__init__(
            f"{model!r} cannot be loaded: pinned models hold all {places} places (max_concurrent_models): {', '.join(pinned)}. "
            "Unpin one, or allow more.",
            details={"error_fields": {"model": model, "pinned_models": list(pinned)}},
        )


class ShuttingDown(Unavailable):
    """The appliance ends; system D's 503."""

    default_code = "shutting_down"

    def __init__(self) -> None:
        super().__init__("The server is shutting down.")
