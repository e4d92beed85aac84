"""The call about the log."""

from contextlib import aclosing

from grpc.aio import ServicerContext

from appliance.control.calls.group import CallGroup, require_in_range
from appliance.control.convert.status import to_line
from appliance.control.follow import follow_until
from appliance.control.v1 import control_pb2 as pb
from appliance.control.writing import write

MAX_LINES = 2000


class LogCalls(CallGroup):
    """TailLogs."""

    async def TailLogs(
        self,
        request: pb.TailLogsRequest,
        context: ServicerContext[pb.TailLogsRequest, pb.TailLogsResponse],
    ) -> None:
        """Send the latest lines, and with `follow` new ones as they are written."""
        count = int(require_in_range("count", request.count, 0, MAX_LINES))
        lines = self._parts.lines
        tail = lines.tail(count, source=request.source)
        for line in tail:
            await write(context, to_line(line))
        if not request.follow:
            return
        source = lines.follow(after=tail[-1].number if tail else None, source=request.source)
        async with aclosing(follow_until(self._stopping, source)) as more:
            async for new in more:
                if new is not None:
                    await write(context, to_line(new))
