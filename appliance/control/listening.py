"""What the gRPC servers have in common: their options, the port that they listen on, TLS."""

from pathlib import Path
from typing import Any, Final

import grpc
import grpc.aio

from appliance.base.listeners import describe_listen_error, why_not

MAX_METADATA_BYTES: Final = 16_384


def server_options(*, max_message_bytes: int, max_calls: int) -> list[tuple[str, Any]]:
    """Return the options of a server.

    Args:
        max_message_bytes: Longest message that is received.
        max_calls: Streams of one connection at the same time.
    """
    return [
        # else a second appliance could listen on the same port and get half of the calls
        ("grpc.so_reuseport", 0),
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_send_message_length", -1),
        ("grpc.max_metadata_size", MAX_METADATA_BYTES),
        ("grpc.max_concurrent_streams", max_calls),
        # A caller whose connection is dead is detected within 80 s, and its upstream request is cancelled.
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ]


def listen_tcp(
    server: grpc.aio.Server,
    host: str,
    port: int,
    credentials: grpc.ServerCredentials | None,
    *,
    settings: tuple[str, str],
) -> str:
    """Let a server listen on a port; return the address, `host:port`.

    Args:
        server: Not started yet.
        credentials: Of TLS; None = plain text.
        settings: The variables of host and port, for the error's text.

    Raises:
        OSError: The address cannot be used.
    """
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        if credentials is None:
            server.add_insecure_port(address)
        else:
            server.add_secure_port(address, credentials)
    except RuntimeError as exc:
        reason = why_not(host, port)
        raise OSError(reason.errno, describe_listen_error(reason, host, port, settings=settings)) from exc
    return address


def tls_credentials(
    cert: Path | None, key: Path | None, client_ca: Path | None = None
) -> grpc.ServerCredentials | None:
    """Return the TLS credentials; None for plain text.

    Args:
        client_ca: Of client certificates, which callers then need; None = they need none.
    """
    if cert is None or key is None:
        return None
    return grpc.ssl_server_credentials(
        [(key.read_bytes(), cert.read_bytes())],
        root_certificates=client_ca.read_bytes() if client_ca is not None else None,
        require_client_auth=client_ca is not None,
    )
