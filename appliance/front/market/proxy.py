"""The address of the proxy: `POST /api/v1/gpu/proxy`."""

from collections.abc import Awaitable
from typing import Final

from appliance.base import jsons
from appliance.base.errors import TooLarge
from appliance.base.time_limit import HEADER, parse_time_limit_s
from appliance.engines.stream import Stream
from appliance.front.accounts.caller import BASE, user_of
from appliance.front.market.proxy_charges import ProxyCharge
from appliance.front.pipeline.access import Access, read_key
from appliance.front.pipeline.body import read_object
from appliance.front.pipeline.request import Request
from appliance.front.pipeline.response import Response, json_response
from appliance.front.pipeline.route import Route
from appliance.market.proxy.fields import content_type_of, join_fields
from appliance.market.proxy.order import read_order
from appliance.market.proxy.service import GpuProxy, ProxyCaller, ProxyStream

MAX_BODY_BYTES: Final = 12_582_912  # 8 MiB of a body in JSON, with its escapes, and the other fields
MAX_SHOWN_BYTES: Final = 4096


class ProxyHandlers:
    """The handler of requests through the proxy.

    Args:
        proxy: Sends them.
    """

    def __init__(self, proxy: GpuProxy) -> None:
        self._proxy = proxy

    def routes(self) -> list[Route]:
        """Return this group's addresses."""
        path = f"{BASE}/gpu/proxy"
        return [Route(("POST",), path, self.send, dialect="market", access=Access.ACCOUNT, scope="proxy")]

    async def send(self, request: Request) -> Response:
        """Send a request to a target by http, https, mcp or openinference, and return its answer.

        The body is `{protocol, target_url, method, headers, body, timeout, stream_response, follow}`.

        Returns:
            `{status_code, headers, body, duration, duration_ms}`, the duration in nanoseconds, whatever the
            target's status; with `stream_response` the target's body as it arrives, its status and headers in
            `X-Proxy-Status` and `X-Proxy-Headers`.
        """
        if len(request.body) > MAX_BODY_BYTES:
            raise TooLarge(f"The body has {len(request.body)} bytes; up to {MAX_BODY_BYTES} are taken here.")
        user = user_of(request)
        order = read_order(read_object(request.body))
        limit_s = parse_time_limit_s(request.headers.get(HEADER))
        keys = {read_key(request.headers), request.headers.get("x-api-key", "").strip()}
        caller = ProxyCaller(user.id, request.peer, tuple(key for key in keys if key))
        charge = await ProxyCharge.begin(request)
        is_passed_on = False
        try:
            if not order.is_streamed:
                answer = await self._proxy.answer(order, caller, time_limit_s=limit_s)
                charge.answered(order.protocol)
                return json_response(answer)
            stream = await self._proxy.stream(order, caller, time_limit_s=limit_s)
            charge.answered(order.protocol)
            is_passed_on = True
            return _streamed(stream, charge)
        finally:
            if not is_passed_on:
                charge.close()


class _PassedStream(Stream):
    """A target's body on its way to the caller; closing it ends the request."""

    __slots__ = ("_charge", "_stream")

    def __init__(self, stream: ProxyStream, charge: ProxyCharge) -> None:
        self._stream = stream
        self._charge = charge

    def __anext__(self) -> Awaitable[bytes]:
        return self._next()

    async def _next(self) -> bytes:
        piece = await self._stream.next_piece()
        if not piece:
            raise StopAsyncIteration
        return piece

    async def aclose(self) -> None:
        """Close the connection to the target."""
        try:
            self._stream.close()
        finally:
            self._charge.close()


def _streamed(stream: ProxyStream, charge: ProxyCharge) -> Response:
    """Return the answer of a target as it arrives. A browser shows none of it as a page of ours."""
    shown = jsons.dumps(join_fields(stream.headers))
    headers = [
        ("X-Proxy-Status", str(stream.status)),
        ("X-Content-Type-Options", "nosniff"),
        ("Content-Security-Policy", "sandbox; default-src 'none'"),
        ("Cache-Control", "no-store"),
    ]
    if len(shown) <= MAX_SHOWN_BYTES and shown.isascii():
        headers.append(("X-Proxy-Headers", shown.decode()))
    content_type = content_type_of(stream.headers) or "application/octet-stream"
    pieces = _PassedStream(stream, charge)
    return Response(content_type=content_type, pieces=pieces, headers=headers, cuts_on_failure=True)
