"""The protocol mcp: one request or notification to an MCP server, by the official SDK as the client.

Servers of 2026-07-28 are asked at once, older ones after the handshake, those of 2024-11-05 over their stream
of events. What a server answers is handed on as JSON-RPC, its errors, too.

Source:
    https://modelcontextprotocol.io/specification
"""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any, Final

from appliance.base.errors import ApplianceError, Invalid, UpstreamFailed
from appliance.market.proxy.exchange import ProxyAnswer, ProxyCall

MAX_METHOD_CHARACTERS: Final = 128
JSON_RPC: Final = "2.0"
OLD_SERVER: Final = (400, 404, 405, 406, 415, 501)  # to a POST, of servers that only have a stream of events


async def speak_mcp(call: ProxyCall) -> ProxyAnswer:
    """Make a call (see Speak): connect, ask, disconnect.

    1. a notification                → 202 without a body
    2. the server answers            → 200, `{jsonrpc, id, result}`
    3. it answers with an error      → 200, `{jsonrpc, id, error}`
    4. it is no MCP server           → a failure of the target

    Raises:
        Invalid: The body is no request of JSON-RPC.
    """
    method, params = read_request(call.order.body)
    from mcp import MCPError  # 27 MB and more than a second: loaded with the first request
    from mcp.types import Notification, Request
    from pydantic import TypeAdapter

    from appliance.market.proxy.mcp_transport import CheckedTransport

    wanted_id = call.order.body.get("id", 1)
    transport = CheckedTransport(call.sender, call.policy)
    is_connected = False
    answer = ProxyAnswer(200, {"Content-Type": "application/json"})
    try:
        async with _connected(call, transport) as client:
            is_connected = True
            if method.startswith("notifications/"):  # 1
                await client.session.send_notification(Notification[Any, str](method=method, params=params))
                return ProxyAnswer(202, {}, {"body": None}, transport.size_bytes)
            request: Any = Request[Any, str](method=method, params=params)
            result = await client.session.send_request(request, TypeAdapter(dict[str, Any]))  # 2
            answer.fields = {"body": {"jsonrpc": JSON_RPC, "id": wanted_id, "result": result}}
    except ApplianceError:
        raise
    except Exception as error:
        if answer.fields:
            return answer  # it answered, and failed at the farewell
        if transport.failure is not None:
            raise transport.failure from None
        said = next((one for one in _inside(error) if isinstance(one, MCPError)), None)
        if said is not None and is_connected:  # 3
            shown = said.error.model_dump(mode="json", exclude_none=True)
            answer.fields = {"body": {"jsonrpc": JSON_RPC, "id": wanted_id, "error": shown}}
            answer.size_bytes = transport.size_bytes
            return answer
        # 4
        text = "The target is no MCP server, or it broke off."
        raise UpstreamFailed(text, code="target_failed") from error
    answer.size_bytes = transport.size_bytes
    return answer


def _inside(error: BaseException) -> Iterator[BaseException]:
    """Yield an error, or those in its group: the SDK's tasks raise groups."""
    if isinstance(error, BaseExceptionGroup):
        for one in error.exceptions:
            yield from _inside(one)
    else:
        yield error


def read_request(body: Any) -> tuple[str, dict[str, Any] | None]:
    """Return the method and the parameters of a body.

    Raises:
        Invalid: It is no request of JSON-RPC.
    """
    if not isinstance(body, dict):
        raise Invalid(
            "`body` must be an object with `method` and `params`.", param="body", code="invalid_value"
        )
    method, params = body.get("method"), body.get("params")
    if not isinstance(method, str) or not 0 < len(method) <= MAX_METHOD_CHARACTERS:
        raise Invalid(
            f"`body.method` must be a text of up to {MAX_METHOD_CHARACTERS} characters, such as tools/list.",
            param="body.method",
            code="invalid_value",
        )
    if params is not None and not isinstance(params, dict):
        raise Invalid("`body.params` must be an object.", param="body.params", code="invalid_value")
    return method, params


@asynccontextmanager
async def _connected(call: ProxyCall, transport: Any) -> AsyncIterator[Any]:
    """Connect to a server; to one that refuses POST requests over its stream of events."""
    import httpx2
    from mcp import Client
    from mcp.client.sse import sse_client
    from mcp.client.streamable_http import streamable_http_client

    url = call.target.url

    def make(
        headers: dict[str, str] | None = None,
        timeout: httpx2.Timeout | None = None,
        auth: httpx2.Auth | None = None,
    ) -> httpx2.AsyncClient:
        # The proxy limits the time; what was sent to us is no credential of the SDK's.
        return httpx2.AsyncClient(
            transport=transport, headers=dict(call.headers), timeout=None, trust_env=False
        )

    async with make() as http:
        client = Client(streamable_http_client(url, http_client=http), cache=None)
        try:
            await client.__aenter__()
        except Exception:
            if transport.failure is not None or transport.post_status not in OLD_SERVER:
                raise
        else:
            try:
                yield client
            finally:
                await client.__aexit__(None, None, None)
            return
    async with Client(sse_client(url, httpx_client_factory=make), mode="legacy", cache=None) as old:
        yield old
