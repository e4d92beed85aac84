"""The calls about backends: list, watch, add, remove, drain, and how one is chosen."""

from contextlib import aclosing
from typing import Any

from grpc.aio import ServicerContext

from appliance.control.calls.group import AnyContext, CallGroup, parse_interval_s, require_text
from appliance.control.convert.backends import to_backend
from appliance.control.follow import follow_until
from appliance.control.v1 import control_pb2 as pb
from appliance.control.writing import write


class BackendCalls(CallGroup):
    """ListBackends, WatchBackends, AddBackend, RemoveBackend, DrainBackend, SetStrategy."""

    async def ListBackends(
        self, request: pb.ListBackendsRequest, context: AnyContext
    ) -> pb.ListBackendsResponse:
        """Return every backend."""
        return pb.ListBackendsResponse(backends=self._backends())

    async def WatchBackends(
        self,
        request: pb.WatchBackendsRequest,
        context: ServicerContext[pb.WatchBackendsRequest, pb.WatchBackendsResponse],
    ) -> None:
        """Send every backend now and after each change."""
        changes = follow_until(
            self._stopping, self._parts.router.changed.follow(), every_s=parse_interval_s(request)
        )
        async with aclosing(changes):
            async for _ in changes:
                await write(context, pb.WatchBackendsResponse(backends=self._backends()))

    async def AddBackend(self, request: pb.AddBackendRequest, context: AnyContext) -> pb.AddBackendResponse:
        """Add a server to the fleet."""
        server = self._parts.fleet.add(backend_spec(request), persist=request.persist)
        return pb.AddBackendResponse(backend=to_backend(server.describe()))

    async def RemoveBackend(
        self, request: pb.RemoveBackendRequest, context: AnyContext
    ) -> pb.RemoveBackendResponse:
        """Remove a server from the fleet; its running requests are finished."""
        self._parts.fleet.remove(require_text(request.name), persist=request.persist)
        return pb.RemoveBackendResponse()

    async def DrainBackend(
        self, request: pb.DrainBackendRequest, context: AnyContext
    ) -> pb.DrainBackendResponse:
        """Send a server no new requests, or with `resume` send it requests again."""
        name = require_text(request.name)
        server = self._parts.fleet.drain(name, resume=request.resume, persist=request.persist)
        return pb.DrainBackendResponse(backend=to_backend(server.describe()))

    async def SetStrategy(
        self, request: pb.SetStrategyRequest, context: AnyContext
    ) -> pb.SetStrategyResponse:
        """Change how a server is chosen, in one pool or in all."""
        self._parts.fleet.set_strategy(request.strategy, pool=request.pool, persist=request.persist)
        return pb.SetStrategyResponse(strategy=self._parts.router.strategy)

    def _backends(self) -> list[pb.Backend]:
        return [to_backend(state) for state in self._parts.router.states()]


def backend_spec(request: pb.AddBackendRequest) -> dict[str, Any]:
    """Return the fleet's specification of a new server; fields that were not set are left to its defaults."""
    spec: dict[str, Any] = {"url": request.url, "cost": request.cost, "models": list(request.models)}
    for name in ("name", "kind", "pool", "api_key"):
        if value := getattr(request, name):
            spec[name] = value
    if request.HasField("weight"):
        spec["weight"] = request.weight
    if request.HasField("max_in_flight"):
        spec["max_in_flight"] = request.max_in_flight
    return spec
