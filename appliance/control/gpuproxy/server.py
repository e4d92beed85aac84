"""The gRPC server of GRPC_PORT: where it listens, its limits, its shutdown; users call it with their keys."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from appliance.base import logs
from appliance.base.clock import Clock
from appliance.control.gpuproxy import gpuproxy_pb2, gpuproxy_pb2_grpc
from appliance.control.gpuproxy.answers import AskHttp
from appliance.control.gpuproxy.servicer import GpuProxyServicer
from appliance.control.guard import Guard, is_loopback
from appliance.control.interceptor import Interceptor
from appliance.control.listening import listen_tcp, server_options, tls_credentials
from appliance.control.reflection import enable_reflection
from appliance.control.settings import ControlSettings

log = logs.get_logger("control")
SERVICE = gpuproxy_pb2.DESCRIPTOR.services_by_name["GPUProxyService"].full_name
MAX_CALLS = 256  # at the same time, streams included
MAX_MESSAGE_BYTES = 16_777_216


class ServingHealth(health_pb2_grpc.HealthServicer):  # type: ignore[misc]  # it has no types
    """Answers health checks of this server.

    Args:
        is_serving: Whether the appliance takes requests.
    """

    def __init__(self, is_serving: Callable[[], bool]) -> None:
        self._is_serving = is_serving

    async def Check(
        self,
        request: health_pb2.HealthCheckRequest,
        context: grpc.aio.ServicerContext[health_pb2.HealthCheckRequest, health_pb2.HealthCheckResponse],
    ) -> health_pb2.HealthCheckResponse:
        """Say whether it serves."""
        states = health_pb2.HealthCheckResponse
        if request.service not in ("", SERVICE):
            await context.abort(grpc.StatusCode.NOT_FOUND, f"There is no service {request.service[:100]!r}.")
        return states(status=states.SERVING if self._is_serving() else states.NOT_SERVING)


@asynccontextmanager
async def serving_gpuproxy(
    settings: ControlSettings,
    ask: AskHttp,
    *,
    clock: Clock,
    is_serving: Callable[[], bool],
    grace_s: Callable[[], float],
) -> AsyncIterator[str]:
    """Serve `gpuproxy.GPUProxyService` while the context is open.

    Args:
        settings: GRPC_*.
        ask: Asks the HTTP addresses of which the calls are made.
        clock: The time.
        is_serving: Whether the appliance takes requests.
        grace_s: Returns how long running calls get at the end.

    Yields:
        The address, `host:port`; "" = GRPC_PORT is 0.

    Raises:
        OSError: The address or the TLS files cannot be used.
    """
    if not settings.grpc_port:
        yield ""
        return
    server = grpc.aio.server(
        interceptors=[Interceptor(Guard(""))],
        options=server_options(max_message_bytes=MAX_MESSAGE_BYTES, max_calls=MAX_CALLS),
        maximum_concurrent_rpcs=MAX_CALLS,
    )
    gpuproxy_pb2_grpc.add_GPUProxyServiceServicer_to_server(GpuProxyServicer(ask, clock=clock), server)
    health_pb2_grpc.add_HealthServicer_to_server(ServingHealth(is_serving), server)
    enable_reflection(server, (SERVICE, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name))
    credentials = tls_credentials(settings.grpc_tls_cert, settings.grpc_tls_key)
    address = listen_tcp(
        server, settings.grpc_host, settings.grpc_port, credentials, settings=("GRPC_HOST", "GRPC_PORT")
    )
    await server.start()
    has_tls = credentials is not None
    log.info("gpuproxy_grpc_serving", address=address, tls=has_tls)
    if not has_tls and not is_loopback(settings.grpc_host):
        log.warning(
            "gpuproxy_grpc_without_tls",
            address=address,
            note="API keys and passwords cross the network readable: set GRPC_TLS_CERT and GRPC_TLS_KEY",
        )
    try:
        yield address
    finally:
        await server.stop(grace_s())
