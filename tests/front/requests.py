"""A request for handlers, and the JSON body of a response, for tests without a server."""

from typing import Any

from appliance.base import jsons
from appliance.engines.receipts import Receipt
from appliance.front.pipeline.request import Request
from appliance.front.pipeline.response import Response


def make_request(
    path: str = "/",
    body: Any = None,
    *,
    method: str = "POST",
    query: str = "",
    headers: dict[str, str] | None = None,
    **params: str,
) -> Request:
    """Return a request; `body` is sent as JSON, bytes as they are; `params` are the parts of the path."""
    data = body if isinstance(body, bytes) else b"" if body is None else jsons.dumps(body)
    return Request(
        method,
        path,
        headers or {},
        data,
        "127.0.0.1",
        "req_1",
        Receipt("req_1"),
        path,
        query=query,
        params=params,
    )


def json_of(response: Response) -> Any:
    """Return the body of a whole JSON response."""
    assert (response.content_type, response.pieces) == ("application/json", None)
    return jsons.loads(response.body)
