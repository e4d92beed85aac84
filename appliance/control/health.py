"""The standard gRPC health service; every call reads the state of the appliance."""

import asyncio
from contextlib import aclosing

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from appliance.control.calls.group import AnyContext
from appliance.control.follow import follow_until
from appliance.control.parts import ControlParts
from appliance.control.v1 import control_pb2
from appliance.control.writing import write

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
SERVICE = control_pb2.DESCRIPTOR.services_by_name["Control"].full_name
READINESS = "readiness"
SERVICES = ("", SERVICE, "liveness", READINESS)


class HealthService(health_pb2_grpc.HealthServicer):  # type: ignore[misc]  # grpc_health has no types
    """`readiness` is SERVING while requests are answered; the other services until the appliance stops.

    Source:
        grpc.health.v1; the names liveness and readiness are those of the Gateway API Inference Extension.
    """

    def __init__(self, parts: ControlParts, *, stopping: asyncio.Event) -> None:
        self._parts = parts
        self._stopping = stopping

    def status_of(self, service: str) -> int | None:
        """Return the health of a service; None for an unknown one."""
        if service not in SERVICES:
            return None
        state = self._parts.status()["state"]
        is_stopping = self._stopping.is_set() or state == "stopping"
        is_not_ready = service == READINESS and (state != "serving" or self._parts.is_draining())
        return int(NOT_SERVING if is_stopping or is_not_ready else SERVING)

    async def Check(
        self, request: health_pb2.HealthCheckRequest, context: AnyContext
    ) -> health_pb2.HealthCheckResponse:
        """Return the health of one service; NOT_FOUND for an unknown one."""
        status = self.status_of(request.service)
        if status is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"There is no service {request.service[:100]!r}.")
        return health_pb2.HealthCheckResponse(status=status)

    async def List(
        self, request: health_pb2.HealthListRequest, context: AnyContext
    ) -> health_pb2.HealthListResponse:
        """Return the health of every service."""
        return health_pb2.HealthListResponse(
            statuses={name: health_pb2.HealthCheckResponse(status=self.status_of(name)) for name in SERVICES}
        )

    async def Watch(self, request: health_pb2.HealthCheckRequest, context: AnyContext) -> None:
        """Send the health of one service now and after each change, until the control API closes."""
        sent = None
        async with aclosing(follow_until(self._stopping, self._parts.changed.follow())) as changes:
            async for _ in changes:
                status = self.status_of(request.service)
                status = UNKNOWN if status is None else status
                if status != sent:
                    sent = status
                    await write(context, health_pb2.HealthCheckResponse(status=status))
        last = self.status_of(request.service)
        if last != sent and last is not None:
            await write(context, health_pb2.HealthCheckResponse(status=last))
