"""LoRA adapters and their orders as messages."""

from appliance.control.convert.values import to_enum, to_sendable, to_timestamp
from appliance.control.v1 import control_pb2 as pb
from appliance.downloads.contract import DownloadProgress
from appliance.engines.lora.order import OrderJob
from appliance.engines.lora.status_view import AdapterRow


def to_lora_state(word: str) -> pb.LoraState:
    """Return the enum value for the state `word`; 0 for a word that the enum does not have."""
    return to_enum(pb.LoraState, "LORA_STATE", word)


def to_adapter(row: AdapterRow) -> pb.LoraAdapter:
    """Return an adapter, with its state on each backend, as a message."""
    adapter = row.adapter
    return pb.LoraAdapter(
        name=to_sendable(adapter.name),
        base_model=to_sendable(adapter.base_model),
        path=to_sendable(adapter.path),
        source=to_sendable(adapter.source),
        backend=adapter.backend,
        is_pinned=adapter.is_pinned,
        is_declared=row.is_declared,
        backends=[
            pb.LoraBackend(
                backend=status.backend,
                kind=status.kind,
                state=to_lora_state(status.state),
                detail=to_sendable(status.detail),
            )
            for status in row.backends
        ],
    )


def to_order(order: OrderJob) -> pb.LoraOrder:
    """Return a pending order as a message."""
    progress = order.progress or DownloadProgress()
    return pb.LoraOrder(
        name=to_sendable(order.name),
        source=to_sendable(order.source),
        path=to_sendable(order.path),
        phase=to_enum(pb.LoraOrderPhase, "LORA_ORDER_PHASE", order.phase),
        since=to_timestamp(order.since_s),
        error=to_sendable(order.error),
        done_bytes=progress.done_bytes,
        total_bytes=progress.total_bytes or 0,
    )
