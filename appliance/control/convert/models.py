"""Models, queues and devices as messages; what is not known stays absent."""

from collections.abc import Mapping, Sequence

from appliance.control.convert.values import to_enum, to_sendable, to_timestamp
from appliance.control.v1 import control_pb2 as pb
from appliance.models.status.views import DeviceView, ModelView, QueueView, RunnerView


def to_model_status(word: str) -> pb.ModelStatus:
    """Return the enum value for the status `word`; 0 for a word that the enum does not have."""
    return to_enum(pb.ModelStatus, "MODEL_STATUS", word)


def to_model(view: ModelView, waiting: Mapping[str, int] | None = None) -> pb.Model:
    """Return a model as a message.

    Args:
        view: The model.
        waiting: How many requests wait for each model, by alias; None = none.
    """
    return pb.Model(
        alias=view.alias,
        status=to_model_status(view.status),
        path=to_sendable(str(view.path or "")),
        context_tokens=view.context_tokens,
        slots=view.slots,
        replicas=view.replicas,
        port=view.port,
        started_at=to_timestamp(view.started_at_s),
        last_used_at=to_timestamp(view.last_used_at_s),
        expires_at=to_timestamp(_expires_at_s(view)),
        updated_at=to_timestamp(view.updated_at_s or None),
        load_progress_percent=view.load_progress,
        expected_in_s=view.expected_in_s,
        error_message=to_sendable(view.error_message),
        attempts=view.attempts,
        is_pinned=view.is_pinned,
        is_warm=view.is_warm,
        size_bytes=view.size_bytes,
        estimate_bytes=view.estimate_bytes,
        memory_bytes=view.memory_bytes,
        average_bytes=view.average_bytes,
        load_s=view.load_s,
        loads=view.loads,
        active=view.active,
        queue_length=(waiting or {}).get(view.alias, 0),
        runners=[_to_runner(runner) for runner in view.runners],
        aliases=view.aliases,
    )


def _expires_at_s(view: ModelView) -> float | None:
    """Return when its last process is unloaded; None when one of them never is, or there is none."""
    ends = [runner.expires_at_s for runner in view.runners]
    known = [end for end in ends if end is not None]
    return max(known) if known and len(known) == len(ends) else None


def _to_runner(view: RunnerView) -> pb.Runner:
    return pb.Runner(
        port=view.port,
        pid=view.pid,
        status=to_model_status(view.status),
        started_at=to_timestamp(view.started_at_s),
        last_used_at=to_timestamp(view.last_used_at_s),
        expires_at=to_timestamp(view.expires_at_s),
        slots=view.slots,
        active=view.active,
        load_s=view.load_s,
        memory_bytes=view.memory_bytes,
        log_path=to_sendable(str(view.log_path or "")),
        devices=[pb.DeviceMemory(index=index, memory_bytes=taken) for index, taken in view.devices],
    )


def to_queue(view: QueueView) -> pb.Queue:
    """Return one model's queue as a message."""
    return pb.Queue(
        alias=view.alias,
        queue_length=view.queue_length,
        limit=view.limit,
        oldest_s=view.oldest_s,
        current_processing=view.current_processing,
        total_requests=view.total_requests,
        total_processed=view.total_processed,
        total_rejected=view.total_rejected,
    )


def to_device(view: DeviceView, models: Sequence[ModelView]) -> pb.Device:
    """Return a device as a message, with the models that take memory there."""
    taken: dict[str, int] = {}
    for model in models:
        for runner in model.runners:
            for index, size_bytes in runner.devices:
                if index == view.index:
                    taken[model.alias] = taken.get(model.alias, 0) + size_bytes
    return pb.Device(
        index=view.index,
        name=view.name,
        total_bytes=view.total_bytes,
        used_bytes=view.used_bytes,
        free_bytes=view.free_bytes,
        utilization_percent=view.utilization_percent,
        temperature_celsius=view.temperature_celsius,
        power_watts=view.power_watts,
        models=[pb.ModelMemory(alias=alias, memory_bytes=size_bytes) for alias, size_bytes in taken.items()],
    )
