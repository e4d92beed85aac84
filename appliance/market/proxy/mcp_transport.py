"""How the MCP SDK's requests go out: each through `Sender`, so that it reaches only what may be called."""

from collections.abc import AsyncIterator

import httpx2

from appliance.base.errors import ApplianceError, Forbidden, TooLarge
from appliance.base.ssrf import TargetPolicy
from appliance.market.proxy.body_forms import MAX_UP_BYTES
from appliance.market.proxy.exchange import OpenAnswer, Outbound, Sender
from appliance.market.proxy.fields import HOP_BY_HOP

MADE_HERE = HOP_BY_HOP | {"accept-encoding", "content-length", "host"}


class CheckedTransport(httpx2.AsyncBaseTransport):
    """Sends the SDK's requests.

    Args:
        sender: Opens them.
        policy: What may be called.

    Attributes:
        failure: The first that was not the target's answer; None = there was none.
        post_status: Of the last answer to a POST; 0 = none came.
        size_bytes: Of all answers.
    """

    def __init__(self, sender: Sender, policy: TargetPolicy) -> None:
        self._sender = sender
        self._policy = policy
        self.failure: ApplianceError | None = None
        self.post_status = 0
        self.size_bytes = 0

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send one request."""
        try:
            body = await request.aread()
            if len(body) > MAX_UP_BYTES:
                raise TooLarge(f"`body` has more than {MAX_UP_BYTES} bytes.", param="body")
            target = self._policy.check(str(request.url))
            headers = [
                (name, value) for name, value in request.headers.items() if name.lower() not in MADE_HERE
            ]
            headers.append(("Accept-Encoding", "identity"))
            outbound = Outbound(request.method, target, headers, body or None)
            answer = await self._sender.open(outbound, self._policy)
        except ApplianceError as error:
            if self.failure is None or isinstance(error, Forbidden):
                self.failure = error
            raise httpx2.ConnectError(error.message, request=request) from None
        if request.method == "POST":
            self.post_status = answer.status
        return httpx2.Response(
            answer.status, headers=answer.headers, stream=_AnswerStream(self, answer), request=request
        )


class _AnswerStream(httpx2.AsyncByteStream):
    def __init__(self, transport: CheckedTransport, answer: OpenAnswer) -> None:
        self._transport = transport
        self._answer = answer

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            async for piece in self._answer.pieces():
                self._transport.size_bytes += len(piece)
                yield piece
        except ApplianceError as error:
            self._transport.failure = self._transport.failure or error
            raise httpx2.ReadError(error.message) from None

    async def aclose(self) -> None:
        self._answer.close()
