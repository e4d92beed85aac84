"""The calls about receipts: what was decided for a request."""

from appliance.base.errors import NotFound
from appliance.control.calls.group import AnyContext, CallGroup, require_in_range, require_text
from appliance.control.convert.backends import to_receipt
from appliance.control.v1 import control_pb2 as pb

MAX_RECEIPTS = 1000
DEFAULT_RECEIPTS = 100


class ReceiptCalls(CallGroup):
    """GetReceipt, ListReceipts."""

    async def GetReceipt(self, request: pb.GetReceiptRequest, context: AnyContext) -> pb.GetReceiptResponse:
        """Return the receipt of one request."""
        receipt = self._parts.receipts.get(require_text(request.id, "id"))
        if receipt is None:
            raise NotFound(
                f"There is no receipt {request.id[:200]!r}; only the last {MAX_RECEIPTS} are stored."
            )
        return pb.GetReceiptResponse(receipt=to_receipt(receipt))

    async def ListReceipts(
        self, request: pb.ListReceiptsRequest, context: AnyContext
    ) -> pb.ListReceiptsResponse:
        """Return the latest receipts, newest first."""
        count = int(require_in_range("count", request.count, 0, MAX_RECEIPTS)) or DEFAULT_RECEIPTS
        receipts = self._parts.receipts.latest(count)
        return pb.ListReceiptsResponse(receipts=[to_receipt(receipt) for receipt in receipts])
