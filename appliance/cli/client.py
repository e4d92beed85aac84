"""The connection to the control API of a running appliance; every failure is one sentence.

gRPC is imported when the first call is made. The token comes from CONTROL_TOKEN or the file named by
CONTROL_TOKEN_FILE, never from an argument, which every user of the machine could read in the list of
processes.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import grpc

    from appliance.control.v1.control_pb2_grpc import ControlStub

DEFAULT_PORT = 50051
CALL_TIMEOUT_S = 10.0  # of a call that is answered at once
FAILED, USAGE, UNREACHABLE, REFUSED = 1, 2, 3, 4  # exit codes
MAX_MESSAGE_BYTES = 67_108_864

Request = TypeVar("Request")
Response = TypeVar("Response")


class CallFailed(Exception):
    """A call failed.

    `exit_code`: 1 refused by the appliance, 2 wrong usage, 3 not reachable, 4 not allowed.
    """

    def __init__(self, message: str, exit_code: int = FAILED) -> None:
        super().__init__(message)
        self.message = message
        self.exit_code = exit_code


@dataclass(frozen=True, slots=True)
class ServerAddress:
    """The address of an appliance, and how to connect.

    Attributes:
        timeout_s: For every call, in seconds; None = each call's own.
    """

    address: str
    token: str = ""
    tls_ca: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    timeout_s: float | None = None

    @property
    def is_tls(self) -> bool:
        """Whether the connection is encrypted."""
        return self.tls_ca is not None or self.tls_cert is not None


def default_address(environ: Mapping[str, str]) -> str:
    """Return the address of an appliance on this machine.

    1. CONTROL_ADDRESS      2. CONTROL_SOCKET, when CONTROL_PORT=0      3. CONTROL_PORT on 127.0.0.1, or 50051
    """
    if address := environ.get("CONTROL_ADDRESS"):  # 1
        return address
    port, path = environ.get("CONTROL_PORT") or str(DEFAULT_PORT), environ.get("CONTROL_SOCKET")
    return f"unix:{path}" if path and port == "0" else f"127.0.0.1:{port}"  # 2, 3


def parse_address(text: str) -> str:
    """Return an address in gRPC's form: `host:port` or `unix:/path`; a path alone is a unix socket.

    Raises:
        CallFailed: It is none of these (wrong usage).
    """
    if text.startswith("unix:"):
        path = "/" + text.removeprefix("unix:").lstrip("/")
        return f"unix:{path}"
    if text.startswith("/"):
        return f"unix:{text}"
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isdigit() or not 1 <= int(port) <= 65_535 or "/" in host:
        raise CallFailed(f"{text!r} is not an address. Use host:port or unix:/path.", USAGE)
    return text


def read_token(environ: Mapping[str, str]) -> str:
    """Return the token that the environment names, or "".

    Raises:
        CallFailed: Both variables are set, or the file cannot be read (wrong usage).
    """
    token, path = environ.get("CONTROL_TOKEN", ""), environ.get("CONTROL_TOKEN_FILE", "")
    if token and path:
        raise CallFailed("CONTROL_TOKEN and CONTROL_TOKEN_FILE are both set. Unset one of them.", USAGE)
    if not path:
        return token.strip()
    try:
        return Path(path).read_text().strip()
    except (OSError, UnicodeDecodeError) as exc:
        raise CallFailed(f"Cannot read CONTROL_TOKEN_FILE={path}: {exc}.", USAGE) from exc


class ControlClient:
    """A connection, opened at the first call. Use it as a context manager."""

    def __init__(self, server: ServerAddress) -> None:
        self.server = server
        self._address = parse_address(server.address)
        self._channel: grpc.Channel | None = None
        self._stub: ControlStub | None = None

    def __enter__(self) -> ControlClient:
        return self

    def __exit__(self, *_: object) -> None:
        if self._channel is not None:
            self._channel.close()

    @property
    def stub(self) -> ControlStub:
        """The methods of the service; the first use opens the connection.

        Raises:
            CallFailed: The TLS files cannot be used (wrong usage).
        """
        if self._stub is None:
            from appliance.control.v1 import control_pb2_grpc

            self._channel = self._open()
            self._stub = control_pb2_grpc.ControlStub(self._channel)
        return self._stub

    def call(
        self,
        method: grpc.UnaryUnaryMultiCallable[Request, Response],
        request: Request,
        *,
        timeout_s: float = CALL_TIMEOUT_S,
    ) -> Response:
        """Make one call and return its response.

        Args:
            method: One of `stub`.
            request: The method's request.
            timeout_s: Longest wait in seconds, unless the server address has its own.

        Raises:
            CallFailed: The appliance refused it, or cannot be reached.
        """
        try:
            return method(request, timeout=self.server.timeout_s or timeout_s, metadata=self._metadata())
        except _grpc().RpcError as error:
            raise self._failure(error) from error

    def stream(
        self, method: grpc.UnaryStreamMultiCallable[Request, Response], request: Request
    ) -> Generator[Response, None, None]:
        """Make a call and yield the messages of its stream. Closing the iterator cancels the call.

        Raises:
            CallFailed: The appliance refused it or cannot be reached; also in the middle.
        """
        messages = method(request, timeout=self.server.timeout_s, metadata=self._metadata())
        try:
            yield from messages
        except _grpc().RpcError as error:
            raise self._failure(error) from error
        finally:
            messages.cancel()

    def _open(self) -> grpc.Channel:
        module, server = _grpc(), self.server
        options = [("grpc.enable_http_proxy", 0), ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES)]
        if (server.tls_cert is None) != (server.tls_key is None):
            raise CallFailed("--tls-cert and --tls-key must be given together.", USAGE)
        channel: grpc.Channel
        if not server.is_tls:
            if server.token and not _is_local(self._address):
                print(
                    f"warning: the token is sent to {self._address} without TLS and can be read from the "
                    "traffic. Use --tls-ca.",
                    file=sys.stderr,
                )
            channel = module.insecure_channel(self._address, options)
            return channel
        ca, key, cert = (_read(path) for path in (server.tls_ca, server.tls_key, server.tls_cert))
        credentials = module.ssl_channel_credentials(ca, key, cert)
        channel = module.secure_channel(self._address, credentials, options)
        return channel

    def _metadata(self) -> tuple[tuple[str, str], ...]:
        return (("authorization", f"Bearer {self.server.token}"),) if self.server.token else ()

    def _failure(self, error: Any) -> CallFailed:
        """Return what went wrong.

        1. not allowed
        2. refused by the appliance: the error has its details
        3. not reachable, or too late
        4. anything else
        """
        codes = _grpc().StatusCode
        code, text = error.code(), error.details() or ""
        is_refused = any(key == "grpc-status-details-bin" for key, _ in error.trailing_metadata() or ())
        if code in (codes.UNAUTHENTICATED, codes.PERMISSION_DENIED):  # 1
            remedy = "" if self.server.token else " Set CONTROL_TOKEN or CONTROL_TOKEN_FILE."
            return CallFailed(text + remedy, REFUSED)
        if is_refused:  # 2
            return CallFailed(text)
        if code is codes.UNAVAILABLE:  # 3
            return CallFailed(_unreachable(self._address, text, is_tls=self.server.is_tls), UNREACHABLE)
        if code is codes.DEADLINE_EXCEEDED:
            return CallFailed(f"No response from {self._address} in time (--timeout).", UNREACHABLE)
        return CallFailed(f"The call failed with {code.name}: {text}")  # 4


def _unreachable(address: str, reason: str, *, is_tls: bool) -> str:
    lower = reason.lower()
    if is_tls and ("handshake" in lower or "ssl" in lower or "certificate" in lower):
        return f"The TLS handshake with {address} failed. Check --tls-ca, --tls-cert and --tls-key."
    check = "Check that it is running, and the address (--address, CONTROL_ADDRESS)."
    return f"No appliance responds at {address}. {check}"


def _is_local(address: str) -> bool:
    host = address.rpartition(":")[0]
    return address.startswith("unix:") or host in {"localhost", "[::1]"} or host.startswith("127.")


def _read(path: Path | None) -> bytes | None:
    if path is None:
        return None
    try:
        return path.read_bytes()
    except OSError as exc:
        raise CallFailed(f"Cannot read {path}: {exc.strerror}.", USAGE) from exc


def _grpc() -> ModuleType:
    """Import gRPC, with its own messages on stderr switched off."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    import grpc

    return grpc
