"""The standard health service, answered from the appliance's own state: nothing is copied, so nothing can be stale."""

import asyncio
from contextlib import aclosing
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from appliance.control.follow import followed
from appliance.control.parts import ControlParts
from appliance.control.v1 import control_pb2
from appliance.control.writing import write

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
SERVICE = control_pb2.DESCRIPTOR.services_by_name["Control"].full_name
READINESS = "readiness"
SERVICES = ("", SERVICE, "liveness", READINESS)


class HealthService(health_pb2_grpc.HealthServicer):  # type: ignore[misc]
    """`readiness` is SERVING while requests are answered; the other three until the appliance stops.

    Source: grpc.health.v1; the names liveness and readiness are those of the Gateway API Inference Extension.
    """

    def __init__(self, parts: ControlParts, *, stopping: asyncio.Event) -> None:
        self._parts = parts
        self._stopping = stopping

    def status_of(self, service: str) -> int | None:
        """Give the health of a service; None for one that is not here."""
        if service not in SERVICES:
            return None
        state = self._parts.status()["state"]
        if (
            self._stopping.is_set()
            or state == "stopping"
            or (service == READINESS and (state != "serving" or self._parts.is_draining()))
        ):
            return int(NOT_SERVING)
        return int(SERVING)

    async def Check(self, request: Any, context: Any) -> Any:
        """Answer at once; NOT_FOUND for a service that is not here."""
        status = self.status_of(request.service)
        if status is None:
            await context.abort(
                grpc.StatusCode.NOT_FOUND, f"There is no service {request.service[:100]!r} here."
            )
        return health_pb2.HealthCheckResponse(status=status)

    async def List(self, request: Any, context: Any) -> Any:
        """Answer for every service."""
        return health_pb2.HealthListResponse(
            statuses={name: health_pb2.HealthCheckResponse(status=self.status_of(name)) for name in SERVICES}
        )

    async def Watch(self, request: Any, context: Any) -> None:
        """Tell the health at once and on each change; SERVICE_UNKNOWN for a service that is not here. Ends with the door."""
        told = None
        async with aclosing(followed(self._parts.changed.follow(), stopping=self._stopping)) as changes:
            async for _ in changes:
                status = self.status_of(request.service)
                status = UNKNOWN if status is None else status
                if status != told:
                    told = status
                    await write(context, health_pb2.HealthCheckResponse(status=status))
        last = self.status_of(request.service)
        if last != told and last is not None:
            await write(context, health_pb2.HealthCheckResponse(status=last))
