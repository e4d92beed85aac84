"""The gRPC server: where it listens, its limits, its shutdown. It shares the HTTP front's event loop."""

import asyncio
import os
import socket
import stat
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from appliance.base import logs
from appliance.base.settings import InvalidSettings
from appliance.base.tasks import Tasks
from appliance.control.guard import Guard, is_loopback, problems
from appliance.control.health import SERVICE, HealthService
from appliance.control.interceptor import Interceptor
from appliance.control.listening import listen_tcp, server_options, tls_credentials
from appliance.control.parts import ControlParts
from appliance.control.reflection import enable_reflection
from appliance.control.servicer import Servicer
from appliance.control.settings import ControlSettings
from appliance.control.v1 import control_pb2_grpc

log = logs.get_logger("control")
MAX_CALLS = 256  # at the same time, streams included
MAX_MESSAGE_BYTES = 33_554_432  # as MAX_BODY_BYTES of the HTTP front


@asynccontextmanager
async def serving_control(
    settings: ControlSettings, parts: ControlParts, *, max_calls: int = MAX_CALLS
) -> AsyncIterator[list[str]]:
    """Serve the control API while the context is open.

    Args:
        settings: Where to listen, and how callers authenticate.
        parts: What the calls use.
        max_calls: Calls at the same time; more are refused with RESOURCE_EXHAUSTED.

    Yields:
        The addresses, `host:port` and `unix:/path`; [] where the settings name none.

    Raises:
        InvalidSettings: Every client could call from other machines, or the TLS files cannot be used.
        OSError: An address cannot be used.
    """
    found = problems(settings)
    if fatal := [p for p in found if p.is_fatal]:
        raise InvalidSettings(fatal)
    if not settings.control or (settings.control_port == 0 and settings.control_socket is None):
        yield []
        return
    for problem in found:
        log.warning("control_is_exposed", text=str(problem))
    async with AsyncExitStack() as stack:
        stopping = asyncio.Event()
        tasks = await stack.enter_async_context(Tasks())
        server = _build(settings, parts, stopping=stopping, tasks=tasks, max_calls=max_calls)
        addresses = _listen(server, settings, stack)
        await server.start()
        stack.push_async_callback(_close, server, parts, stopping, tasks)
        tasks.start(_watch_stopping(parts, stopping), name="control-end")
        log.info(
            "control_serving",
            addresses=addresses,
            tls=settings.control_tls_cert is not None,
            mutual_tls=settings.control_tls_client_ca is not None,
            token=bool(settings.control_token.get_secret_value()),
        )
        yield addresses


def _build(
    settings: ControlSettings,
    parts: ControlParts,
    *,
    stopping: asyncio.Event,
    tasks: Tasks,
    max_calls: int,
) -> grpc.aio.Server:
    guard = Guard(settings.control_token.get_secret_value())
    server = grpc.aio.server(
        interceptors=[Interceptor(guard)],
        options=server_options(max_message_bytes=MAX_MESSAGE_BYTES, max_calls=MAX_CALLS),
        maximum_concurrent_rpcs=max_calls,
    )
    control_pb2_grpc.add_ControlServicer_to_server(Servicer(parts, stopping=stopping, tasks=tasks), server)
    health_pb2_grpc.add_HealthServicer_to_server(HealthService(parts, stopping=stopping), server)
    health = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
    enable_reflection(server, (SERVICE, health))
    return server


def _listen(server: grpc.aio.Server, settings: ControlSettings, stack: AsyncExitStack) -> list[str]:
    """Open the port and the socket that the settings name; return their addresses."""
    addresses = []
    if settings.control_port:
        host = settings.control_host
        credentials = tls_credentials(
            settings.control_tls_cert, settings.control_tls_key, settings.control_tls_client_ca
        )
        address = listen_tcp(
            server, host, settings.control_port, credentials, settings=("CONTROL_HOST", "CONTROL_PORT")
        )
        addresses.append(address)
        if not is_loopback(host):
            log.warning("control_beyond_loopback", address=address)
    if settings.control_socket is not None:
        path = settings.control_socket
        remove_dead_socket(path)
        former = os.umask(0o177)  # so that it is created with mode 0600
        try:
            server.add_insecure_port(f"unix:{path}")
        except RuntimeError as exc:
            raise OSError(
                f"Cannot listen on {path} (CONTROL_SOCKET). The folder must exist and be writable."
            ) from exc
        finally:
            os.umask(former)
        stack.callback(_remove, path, path.stat().st_ino)
        addresses.append(f"unix:{path}")
    return addresses


def remove_dead_socket(path: Path) -> None:
    """Remove a socket file that no process listens on, and nothing else.

    Raises:
        OSError: `path` is no socket, or a process listens there.
    """
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise OSError(
            f"{path} (CONTROL_SOCKET) exists and is not a socket. Remove it, or choose another path."
        )
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
        except OSError as exc:
            raise OSError(f"{path} (CONTROL_SOCKET) exists and cannot be tested: {exc}.") from exc
    raise OSError(f"{path} (CONTROL_SOCKET) is in use: another process listens there.")


def _remove(path: Path, inode: int) -> None:
    """Remove the socket, unless the path belongs to another one by now."""
    with suppress(OSError):
        if path.stat().st_ino == inode:
            path.unlink()


async def _watch_stopping(parts: ControlParts, stopping: asyncio.Event) -> None:
    async for _ in parts.changed.follow():
        if parts.status()["state"] == "stopping":
            stopping.set()
            return


async def _close(server: grpc.aio.Server, parts: ControlParts, stopping: asyncio.Event, tasks: Tasks) -> None:
    """Take no new calls, end the watches, wait the grace period for the others, then cancel them."""
    stopping.set()
    closing = tasks.start(server.stop(parts.grace_s()), name="control-stop")
    if parts.hurry is not None:
        hurry = tasks.start(parts.hurry.wait(), name="control-hurry")
        await asyncio.wait({closing, hurry}, return_when=asyncio.FIRST_COMPLETED)
        if not closing.done():
            await server.stop(0)
    await closing
