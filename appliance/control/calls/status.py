"""The calls about the appliance as a whole: its status, which machine it is, drain, resume, shutdown."""

from contextlib import aclosing

from grpc.aio import ServicerContext

from appliance.base.errors import Conflict
from appliance.control.calls.group import AnyContext, CallGroup, parse_interval_s, require_in_range
from appliance.control.convert.status import to_identity, to_status
from appliance.control.follow import follow_until
from appliance.control.v1 import control_pb2 as pb
from appliance.control.writing import write

MAX_GRACE_S = 3600


class StatusCalls(CallGroup):
    """GetStatus, WatchStatus, GetIdentity, Drain, Resume, Shutdown."""

    async def GetStatus(self, request: pb.GetStatusRequest, context: AnyContext) -> pb.GetStatusResponse:
        """Return the present status."""
        return pb.GetStatusResponse(status=self._status())

    async def WatchStatus(
        self,
        request: pb.WatchStatusRequest,
        context: ServicerContext[pb.WatchStatusRequest, pb.WatchStatusResponse],
    ) -> None:
        """Send the status now and after each change; the last one says that the appliance is stopping."""
        sent = None
        changes = follow_until(
            self._stopping, self._parts.changed.follow(), every_s=parse_interval_s(request)
        )
        async with aclosing(changes):
            async for _ in changes:
                status = self._status()
                sent = status.state
                await write(context, pb.WatchStatusResponse(status=status))
        last = self._status()
        if last.state != sent:
            await write(context, pb.WatchStatusResponse(status=last))

    async def GetIdentity(
        self, request: pb.GetIdentityRequest, context: AnyContext
    ) -> pb.GetIdentityResponse:
        """Return which machine this is."""
        return to_identity(self._parts.identity())

    async def Drain(self, request: pb.DrainRequest, context: AnyContext) -> pb.DrainResponse:
        """Take no new requests."""
        self._parts.drain()
        return pb.DrainResponse(status=self._require_state("draining"))

    async def Resume(self, request: pb.ResumeRequest, context: AnyContext) -> pb.ResumeResponse:
        """Take requests again."""
        self._parts.resume()
        return pb.ResumeResponse(status=self._require_state("serving"))

    async def Shutdown(self, request: pb.ShutdownRequest, context: AnyContext) -> pb.ShutdownResponse:
        """Begin the shutdown. It returns at once: the control API closes only after this response is sent."""
        grace_s = None
        if request.HasField("grace_s"):
            grace_s = require_in_range("grace_s", request.grace_s, 0, MAX_GRACE_S)
        self._parts.shutdown(grace_s)
        return pb.ShutdownResponse()

    def _status(self) -> pb.Status:
        return to_status(self._parts.status())

    def _require_state(self, wanted: str) -> pb.Status:
        """Return the status; raise Conflict unless its state is `wanted`."""
        status = self._parts.status()
        if (state := status["state"]) != wanted:
            raise Conflict(f"The appliance is {state}: it cannot change to {wanted}.", code=f"is_{state}")
        return to_status(status)
