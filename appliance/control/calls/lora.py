"""The calls about LoRA adapters; engines/lora/orders.py carries them out."""

from appliance.base.errors import Conflict
from appliance.control.calls.group import AnyContext, CallGroup, require_in_range, require_text
from appliance.control.convert.lora import to_adapter, to_order
from appliance.control.v1 import control_pb2 as pb
from appliance.downloads.contract import DEFAULT_WORKERS, MAX_WORKERS
from appliance.engines.lora.order import AdapterOrder
from appliance.engines.lora.orders import AdapterOrders


class LoraCalls(CallGroup):
    """ListLoraAdapters, LoadLoraAdapter, UnloadLoraAdapter."""

    async def ListLoraAdapters(
        self, request: pb.ListLoraAdaptersRequest, context: AnyContext
    ) -> pb.ListLoraAdaptersResponse:
        """Return every adapter, and the pending orders."""
        orders = self._orders()
        return pb.ListLoraAdaptersResponse(
            adapters=[to_adapter(row) for row in orders.adapters.status.rows()],
            orders=[to_order(order) for order in orders.pending.values()],
        )

    async def LoadLoraAdapter(
        self, request: pb.LoadLoraAdapterRequest, context: AnyContext
    ) -> pb.LoadLoraAdapterResponse:
        """Load an adapter, after downloading it where it has a source; return its state on each backend."""
        workers = require_in_range("max_workers", request.max_workers or DEFAULT_WORKERS, 1, MAX_WORKERS)
        order = AdapterOrder(
            require_text(request.name),
            request.path,
            request.source,
            request.output_dir,
            request.base_model,
            request.backend,
            request.pinned,
            request.partial,
            int(workers),
            dict(request.config),
        )
        changed = await self._orders().load(order)
        return pb.LoadLoraAdapterResponse(adapter=to_adapter(changed.row))

    async def UnloadLoraAdapter(
        self, request: pb.UnloadLoraAdapterRequest, context: AnyContext
    ) -> pb.UnloadLoraAdapterResponse:
        """Unload an adapter; return it with its state on each backend."""
        changed = await self._orders().unload(require_text(request.name), partial=request.partial)
        return pb.UnloadLoraAdapterResponse(adapter=to_adapter(changed.row))

    def _orders(self) -> AdapterOrders:
        if self._parts.lora is None:
            raise Conflict("LoRA adapters are not available on this appliance.", code="no_lora")
        return self._parts.lora
