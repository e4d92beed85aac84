"""The service `appliance.control.v1.Control`: every call, from its group.

A call reads its request, asks the part that HTTP uses too, and renders the response. Errors are raised as our own; the
interceptor gives them their status codes.
"""

from grpc.aio import ServicerContext

from appliance.control.calls.backends import BackendCalls
from appliance.control.calls.jobs import JobCalls
from appliance.control.calls.logs import LogCalls
from appliance.control.calls.lora import LoraCalls
from appliance.control.calls.models import ModelCalls
from appliance.control.calls.receipts import ReceiptCalls
from appliance.control.calls.settings import SettingsCalls
from appliance.control.calls.status import StatusCalls
from appliance.control.calls.worker import WorkerCalls
from appliance.control.chat import answer_chat
from appliance.control.v1 import control_pb2 as pb


class Servicer(
    StatusCalls,
    SettingsCalls,
    WorkerCalls,
    LogCalls,
    BackendCalls,
    ReceiptCalls,
    ModelCalls,
    JobCalls,
    LoraCalls,
):
    """All groups of calls, and Chat."""

    async def Chat(
        self, request: pb.ChatRequest, context: ServicerContext[pb.ChatRequest, pb.ChatResponse]
    ) -> None:
        """Answer one chat request."""
        await answer_chat(self._parts, request, context)
