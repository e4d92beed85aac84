"""The protocols http and https: one request, its answer as JSON, text or base64."""

from appliance.base.ssrf import refused
from appliance.market.proxy.body_forms import render_body, show_body
from appliance.market.proxy.exchange import OpenAnswer, Outbound, ProxyAnswer, ProxyCall
from appliance.market.proxy.fields import join_fields
from appliance.market.proxy.sender import MAX_REDIRECTS


async def speak_http(call: ProxyCall) -> ProxyAnswer:
    """Send the request, and read its answer (see Speak)."""
    answer = await open_http(call)
    try:
        data = b"" if call.order.method == "HEAD" else await answer.read()
    finally:
        answer.close()
    return ProxyAnswer(answer.status, join_fields(answer.headers), show_body(data), len(data))


async def open_http(call: ProxyCall) -> OpenAnswer:
    """Send the request; the caller reads its answer, and closes it.

    Raises:
        Forbidden: The scheme of the address is another one than the protocol, or see Sender.
        UpstreamFailed: See Sender.
        TooLarge: The body is.
    """
    order = call.order
    if call.target.scheme != order.protocol:
        raise refused(f"Its scheme is {call.target.scheme}, and `protocol` is {order.protocol}.")
    body, headers = render_body(order.body, call.headers)
    redirects = MAX_REDIRECTS if order.is_following else 0
    outbound = Outbound(order.method, call.target, headers, body, redirects)
    return await call.sender.open(outbound, call.policy)
