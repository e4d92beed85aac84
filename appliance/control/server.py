"""The gRPC server of the control API: addresses, TLS, health, reflection. Runs on the event loop that HTTP runs on."""

import os
import socket
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from appliance.base.logs import get_logger
from appliance.base.settings import BadSettings
from appliance.base.tasks import Tasks
from appliance.control.guard import Guard, problems
from appliance.control.parts import ControlParts
from appliance.control.settings import ControlSettings

log = get_logger("control")
SERVICE = "appliance.control.v1.Control"
MOST_CALLS = 256
MOST_BYTES = 16 * 1024 * 1024
STOP_GRACE_S = 2.0


@asynccontextmanager
async def serving_control(settings: ControlSettings, parts: ControlParts) -> AsyncIterator[list[str]]:
    """Serve control while the context is open.

    Gives   the addresses that are listened on, `127.0.0.1:50051`, `unix:/path`
    Raises  BadSettings: reachable without a token or mutual TLS · OSError: an address cannot be had
    """
    found = problems(settings)
    if any(p.is_fatal for p in found):
        raise BadSettings([p for p in found if p.is_fatal])
    import grpc
    from grpc_health.v1 import health, health_pb2, health_pb2_grpc
    from grpc_reflection.v1alpha import reflection

    from appliance.control.servicer import Servicer
    from appliance.control.v1 import control_pb2

    server = grpc.aio.server(maximum_concurrent_rpcs=MOST_CALLS, options=[
        ("grpc.max_receive_message_length", MOST_BYTES), ("grpc.max_send_message_length", MOST_BYTES), ("grpc.so_reuseport", 0)])
    server.add_generic_rpc_handlers((_handlers(Servicer(parts), Guard(settings.control_token.get_secret_value()), control_pb2),))
    checks = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(checks, server)
    reflection.enable_server_reflection((SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
    addresses = _bind(server, settings, grpc)
    await server.start()
    if settings.control_socket is not None:
        os.chmod(settings.control_socket, 0o600)
    log.info("control", addresses=addresses, token=bool(settings.control_token.get_secret_value()))

    async def follow_state() -> None:
        async for _ in parts.changed.follow():
            serving = health_pb2.HealthCheckResponse.SERVING
            ready = serving if parts.status()["state"] == "serving" else health_pb2.HealthCheckResponse.NOT_SERVING
            await checks.set("liveness", serving)
            for name in ("", SERVICE, "readiness"):
                await checks.set(name, ready)

    async with Tasks() as tasks:
        tasks.start(follow_state(), name="control-health")
        try:
            yield addresses
        finally:
            await checks.enter_graceful_shutdown()
            await server.stop(STOP_GRACE_S)
            if settings.control_socket is not None:
                settings.control_socket.unlink(missing_ok=True)


def _handlers(servicer: Any, guard: Guard, messages: Any) -> Any:
    """Wrap each method of the service by the guard; what streams and what does not is read from the protocol itself."""
    import grpc
    from google.protobuf import message_factory

    service = messages.DESCRIPTOR.services_by_name["Control"]
    methods = {}
    for method in service.methods:
        takes, gives = (message_factory.GetMessageClass(d) for d in (method.input_type, method.output_type))
        handler = getattr(servicer, method.name)
        kind, wrap = ((grpc.unary_stream_rpc_method_handler, guard.stream) if method.server_streaming
                      else (grpc.unary_unary_rpc_method_handler, guard.unary))
        methods[method.name] = kind(wrap(method.name, handler), request_deserializer=takes.FromString,
                                    response_serializer=gives.SerializeToString)
    return grpc.method_handlers_generic_handler(SERVICE, methods)


def _bind(server: Any, settings: ControlSettings, grpc: Any) -> list[str]:
    addresses = []
    credentials = _credentials(settings, grpc)
    wanted = []
    if settings.control_port:
        host = f"[{settings.control_host}]" if ":" in settings.control_host else settings.control_host
        wanted.append(f"{host}:{settings.control_port}")
    if settings.control_socket is not None:
        _clear_dead_socket(settings.control_socket)
        wanted.append(f"unix:{settings.control_socket}")
    for address in wanted:
        is_socket = address.startswith("unix:")
        try:
            bound = server.add_insecure_port(address) if credentials is None or is_socket else server.add_secure_port(address, credentials)
        except RuntimeError as exc:
            raise OSError(f"control cannot listen on {address}: it is in use, or not allowed") from exc
        if not bound:
            raise OSError(f"control cannot listen on {address}: it is in use, or not allowed")
        addresses.append(address)
    return addresses


def _credentials(settings: ControlSettings, grpc: Any) -> Any:
    if settings.control_tls_cert is None or settings.control_tls_key is None:
        return None
    pair = (settings.control_tls_key.read_bytes(), settings.control_tls_cert.read_bytes())
    ca = settings.control_tls_client_ca.read_bytes() if settings.control_tls_client_ca is not None else None
    return grpc.ssl_server_credentials([pair], root_certificates=ca, require_client_auth=ca is not None)


def _clear_dead_socket(path: Path) -> None:
    """Remove a socket that nobody listens on any more; anything else at the path is left alone."""
    try:
        if not stat.S_ISSOCK(path.stat().st_mode):
            raise OSError(f"control cannot listen on {path}: there is something else than a socket")
    except FileNotFoundError:
        return
    probe = socket.socket(socket.AF_UNIX)
    try:
        probe.connect(str(path))
    except OSError:
        path.unlink(missing_ok=True)
    else:
        raise OSError(f"control cannot listen on {path}: another process does")
    finally:
        probe.close()
