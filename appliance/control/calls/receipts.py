"""The calls about receipts: what was decided for requests."""

from contextlib import aclosing

from grpc.aio import ServicerContext

from appliance.control.calls.group import AnyContext, CallGroup, require_in_range, require_text
from appliance.control.convert.backends import to_filter, to_receipt
from appliance.control.follow import follow_until
from appliance.control.v1 import control_pb2 as pb
from appliance.control.writing import write
from appliance.engines.receipts import KEPT_RECEIPTS, no_receipt

DEFAULT_RECEIPTS = 100


class ReceiptCalls(CallGroup):
    """GetReceipt, ListReceipts, WatchReceipts."""

    async def GetReceipt(self, request: pb.GetReceiptRequest, context: AnyContext) -> pb.GetReceiptResponse:
        """Return the receipt of one request."""
        receipt = self._parts.receipts.get(require_text(request.id, "id"))
        if receipt is None:
            raise no_receipt(request.id)
        return pb.GetReceiptResponse(receipt=to_receipt(receipt))

    async def ListReceipts(
        self, request: pb.ListReceiptsRequest, context: AnyContext
    ) -> pb.ListReceiptsResponse:
        """Return the latest receipts that fit, newest first."""
        count = int(require_in_range("count", request.count, 0, KEPT_RECEIPTS)) or DEFAULT_RECEIPTS
        found, following = self._parts.receipts.find(to_filter(request.filter), count, before=request.before)
        return pb.ListReceiptsResponse(receipts=[to_receipt(receipt) for receipt in found], next=following)

    async def WatchReceipts(
        self,
        request: pb.WatchReceiptsRequest,
        context: ServicerContext[pb.WatchReceiptsRequest, pb.WatchReceiptsResponse],
    ) -> None:
        """Send the latest receipts that fit, then new ones."""
        count = int(require_in_range("count", request.count, 0, KEPT_RECEIPTS))
        source = self._parts.receipts.follow(to_filter(request.filter), latest=count)
        async with aclosing(follow_until(self._stopping, source)) as receipts:
            async for receipt in receipts:
                if receipt is not None:
                    await write(context, pb.WatchReceiptsResponse(receipt=to_receipt(receipt)))
