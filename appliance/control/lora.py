"""The calls about LoRA adapters. All they do is hand orders on (engines/lora/orders.py)."""

from typing import Any

from appliance.base.errors import Conflict
from appliance.control.calls import CallGroup, named, within
from appliance.control.convert import sendable, to_enum, to_timestamp
from appliance.control.v1 import control_pb2 as pb
from appliance.downloads.contract import DEFAULT_WORKERS, MAX_WORKERS, DownloadProgress
from appliance.engines.lora.orders import AdapterOrder, AdapterOrders, PendingOrder
from appliance.engines.lora.readings import AdapterRow


class LoraCalls(CallGroup):
    """ListLoraAdapters, LoadLoraAdapter, UnloadLoraAdapter."""

    async def ListLoraAdapters(self, request: Any, context: Any) -> Any:
        orders = self._orders()
        return pb.ListLoraAdaptersResponse(
            adapters=[to_adapter(row) for row in orders.adapters.rows()],
            orders=[to_order(one) for one in orders.pending.values()],
        )

    async def LoadLoraAdapter(self, request: Any, context: Any) -> Any:
        order = AdapterOrder(
            named(request.name),
            request.path,
            request.source,
            request.output_dir,
            request.base_model,
            request.backend,
            request.pinned,
            request.partial,
            int(within("max_workers", request.max_workers or DEFAULT_WORKERS, 1, MAX_WORKERS)),
            dict(request.config),
        )
        changed = await self._orders().load(order)
        return pb.LoadLoraAdapterResponse(adapter=to_adapter(changed.row))

    async def UnloadLoraAdapter(self, request: Any, context: Any) -> Any:
        changed = await self._orders().unload(named(request.name), partial=request.partial)
        return pb.UnloadLoraAdapterResponse(adapter=to_adapter(changed.row))

    def _orders(self) -> AdapterOrders:
        if self._parts.lora is None:
            raise Conflict("This appliance keeps no LoRA adapters.", code="no_lora")
        return self._parts.lora


def to_adapter(row: AdapterRow) -> pb.LoraAdapter:
    """Give an adapter as a message."""
    adapter = row.adapter
    return pb.LoraAdapter(
        name=sendable(adapter.name),
        base_model=sendable(adapter.base_model),
        path=sendable(adapter.path),
        source=sendable(adapter.source),
        backend=adapter.backend,
        is_pinned=adapter.is_pinned,
        is_declared=row.is_declared,
        backends=[
            pb.LoraBackend(
                backend=one.backend,
                kind=one.kind,
                state=to_lora_state(one.state),
                detail=sendable(one.detail),
            )
            for one in row.backends
        ],
    )


def to_order(one: PendingOrder) -> pb.LoraOrder:
    """Give an order as a message."""
    progress = one.progress or DownloadProgress()
    return pb.LoraOrder(
        name=sendable(one.name),
        source=sendable(one.source),
        path=sendable(one.path),
        phase=to_enum(pb.LoraOrderPhase, "LORA_ORDER_PHASE", one.phase),
        since=to_timestamp(one.since_s),
        error=sendable(one.error),
        done_bytes=progress.done_bytes,
        total_bytes=progress.total_bytes or 0,
    )


def to_lora_state(word: str) -> pb.LoraState:
    """Give the enum value of a state's word."""
    return to_enum(pb.LoraState, "LORA_STATE", word)
