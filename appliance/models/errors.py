"""The ways in which a model cannot be had, in words for the caller. Statuses and codes are system D's: 503, and 504 for a wait too long."""

from appliance.base.errors import TimedOut, Unavailable

MB = 1 << 20


class QueueFull(Unavailable):
    """A model's line is at max_queue_size_per_model."""

    default_code = "queue_full"

    def __init__(self, alias: str, limit: int, retry_after_s: float) -> None:
        super().__init__(f"{limit} requests already wait for the model {alias!r} (max_queue_size_per_model). Try again later.",
                         param="model", retry_after_s=retry_after_s)


class WaitedTooLong(TimedOut):
    """No turn came within queue_timeout_sec."""

    default_code = "queue_timeout"

    def __init__(self, alias: str, waited_s: float, reason: str, retry_after_s: float) -> None:
        because = f" Last, {reason}." if reason else ""
        super().__init__(f"The model {alias!r} could not take the request within {waited_s:g} s (queue_timeout_sec).{because}",
                         param="model", retry_after_s=retry_after_s)


class NoMemory(Unavailable):
    """The model does not fit, even with every model unloaded that may be. Figures in bytes; shown in MB as system D has it."""

    default_code = "vram_exhausted"
    retryable = False

    def __init__(self, alias: str, *, required_bytes: int, available_bytes: int, loaded: list[str], where: str = "memory") -> None:
        required_mb, available_mb = round(required_bytes / MB), round(available_bytes / MB)
        super().__init__(
            f"The model {alias!r} needs about {required_mb} MB of {where}, and {available_mb} MB can be made free. Let an operator unload or unpin "
            "models, or give it less context (n_ctx).", param="model", details={
                "error_type": "insufficient_vram_error",
                "error_fields": {"model": alias, "required_mb": required_mb, "available_mb": available_mb, "loaded_models": loaded}})


class PlacesPinned(Unavailable):
    """Pinned models hold every place."""

    default_code = "places_pinned"
    retryable = False

    def __init__(self, alias: str, places: int, pinned: list[str]) -> None:
        super().__init__(f"The model {alias!r} cannot be loaded: pinned models hold all {places} places (max_concurrent_models): "
                         f"{', '.join(pinned)}.", param="model")


class ModelFailed(Unavailable):
    """It failed to load as often as it is tried; nobody tries it again until it is reset."""

    default_code = "model_failed"
    retryable = False

    def __init__(self, alias: str, attempts: int, reason: str) -> None:
        super().__init__(f"The model {alias!r} could not be loaded ({attempts} {'attempt' if attempts == 1 else 'attempts'}): {reason[:400]}. "
                         "It is not tried again until an operator resets it.", param="model")


class ShuttingDown(Unavailable):
    """The appliance ends."""

    default_code = "shutting_down"

    def __init__(self) -> None:
        super().__init__("The server is shutting down.")
