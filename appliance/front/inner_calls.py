"""Calls of the HTTP addresses from inside the process: the same access, limits, handlers; no socket."""

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlencode

from appliance.base import jsons
from appliance.base.errors import NotFound
from appliance.engines.outcome import Finish
from appliance.front.pipeline.pipeline import RequestPipeline
from appliance.front.pipeline.request import Request
from appliance.front.pipeline.response import Response
from appliance.front.pipeline.route import Route


class InnerCalls:
    """Asks addresses that answer whole JSON.

    Args:
        routes: All addresses.
        pipeline: The steps that every request passes.
    """

    def __init__(self, routes: Sequence[Route], pipeline: RequestPipeline) -> None:
        self._routes = routes
        self._pipeline = pipeline

    async def ask(
        self,
        method: str,
        path: str,
        *,
        headers: dict[str, str],
        peer: str,
        query: Mapping[str, Any] | None = None,
        body: Any = None,
    ) -> tuple[int, Any, float | None]:
        """Return (status, JSON or None, Retry-After in seconds or None) of an address.

        Args:
            headers: By lower-case name.
            peer: The caller's address.
            query: The query's values.
            body: Sent as JSON; None = nothing.

        Raises:
            NotFound: There is no such address.
        """
        route, params = self._find(method, path)
        data = b"" if body is None else jsons.dumps(body)
        request = self._pipeline.request(
            route.path,
            method=method,
            path=path,
            headers={"content-type": "application/json", **headers},
            body=data,
            peer=peer,
            query=urlencode(query) if query else "",
            params=params,
        )
        with request:
            response = await self._pipeline.respond(route, request)
            return await self._answer(response, request)

    async def _answer(self, response: Response, request: Request) -> tuple[int, Any, float | None]:
        if response.pieces is not None:
            await response.pieces.aclose()
            raise NotFound("This address answers a stream, which cannot be asked for here.")
        self._pipeline.mark_first_byte(request)
        request.finish, request.sent_bytes = Finish.DONE, len(response.body)
        try:
            value = jsons.loads(response.body) if response.body else None
        except jsons.InvalidJson:
            value = None
        return response.status, value, _retry_after_s(response)

    def _find(self, method: str, path: str) -> tuple[Route, dict[str, str]]:
        for route in self._routes:
            if route.serves(method) and (params := route.match(path)) is not None:
                return route, params
        raise NotFound(f"There is nothing at {path[:100]} here: the part that serves it is switched off.")


def _retry_after_s(response: Response) -> float | None:
    for name, value in response.headers:
        if name.lower() == "retry-after" and value.isdigit():
            return float(value)
    return None
