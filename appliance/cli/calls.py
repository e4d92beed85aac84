"""The wire: one connection to a running appliance's control API, and its failures in one sentence each.

gRPC is imported when the first call is made. The token comes from CONTROL_TOKEN or the file named by CONTROL_TOKEN_FILE, never
from an argument, which everybody on the machine could read in the list of processes.
"""

import os
import sys
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DEFAULT_PORT = 50051
PATIENCE_S = 10.0  # for a call that answers at once
OTHER, USAGE, UNREACHABLE, REFUSED = 1, 2, 3, 4  # exit codes
LONGEST_MESSAGE_BYTES = 67_108_864


class CallFailed(Exception):
    """A call came to nothing. `exit_code`: 1 the appliance said no, 2 wrong usage, 3 not reached, 4 not allowed."""

    def __init__(self, message: str, exit_code: int = OTHER) -> None:
        super().__init__(message)
        self.message = message
        self.exit_code = exit_code


@dataclass(frozen=True, slots=True)
class ServerAddress:
    """Which appliance, and how to reach it. `timeout_s`: None = as long as each call usually takes."""

    address: str
    token: str = ""
    tls_ca: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    timeout_s: float | None = None

    @property
    def is_tls(self) -> bool:
        return self.tls_ca is not None or self.tls_cert is not None


def default_address(environ: Mapping[str, str]) -> str:
    """Say where an appliance on this machine listens.

    1. CONTROL_ADDRESS      2. CONTROL_SOCKET, when CONTROL_PORT=0      3. CONTROL_PORT on 127.0.0.1, or 50051
    """
    if address := environ.get("CONTROL_ADDRESS"):  # 1
        return address
    port, path = environ.get("CONTROL_PORT") or str(DEFAULT_PORT), environ.get("CONTROL_SOCKET")
    return f"unix:{path}" if path and port == "0" else f"127.0.0.1:{port}"  # 2, 3


def parse_address(text: str) -> str:
    """Give an address as gRPC takes it: `host:port` or `unix:/path`; a bare path is a socket's.

    Raises  CallFailed (usage) for anything else
    """
    if text.startswith("unix:"):
        path = "/" + text.removeprefix("unix:").lstrip("/")
        return f"unix:{path}"
    if text.startswith("/"):
        return f"unix:{text}"
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isdigit() or not 1 <= int(port) <= 65_535 or "/" in host:
        raise CallFailed(f"{text!r} is no address; write host:port or unix:/path.", USAGE)
    return text


def read_token(environ: Mapping[str, str]) -> str:
    """Give the token that the environment names, or "".

    Raises  CallFailed (usage) when both variables are set, or the file cannot be read
    """
    token, path = environ.get("CONTROL_TOKEN", ""), environ.get("CONTROL_TOKEN_FILE", "")
    if token and path:
        raise CallFailed("Both CONTROL_TOKEN and CONTROL_TOKEN_FILE are set; unset one of them.", USAGE)
    if not path:
        return token.strip()
    try:
        return Path(path).read_text().strip()
    except (OSError, UnicodeDecodeError) as exc:
        raise CallFailed(f"CONTROL_TOKEN_FILE={path} cannot be read: {exc}.", USAGE) from exc


class ControlClient:
    """A connection, opened at the first call. Use it as a context."""

    def __init__(self, where: ServerAddress) -> None:
        self.where = where
        self._address = parse_address(where.address)
        self._channel: Any = None
        self._stub: Any = None

    def __enter__(self) -> "ControlClient":
        return self

    def __exit__(self, *_: object) -> None:
        if self._channel is not None:
            self._channel.close()

    @property
    def messages(self) -> Any:
        """Give the module of the messages."""
        from appliance.control.v1 import control_pb2

        return control_pb2

    def ask(self, method: str, *, patience_s: float = PATIENCE_S, **fields: Any) -> Any:
        """Make one call and give its answer.

        Takes   method: a call of appliance.control.v1.Control; fields: those of its request
        Raises  CallFailed
        """
        call = self._method(method)
        request = getattr(self.messages, f"{method}Request")(**fields)
        grpc = _grpc()
        try:
            return call(request, timeout=self.where.timeout_s or patience_s, metadata=self._metadata())
        except grpc.RpcError as error:
            raise self._failure(error) from error

    def stream(self, method: str, request: Any) -> Generator[Any, None, None]:
        """Make a call that answers with a stream, and give its messages as they come. Closing the iterator cancels the call.

        Raises  CallFailed, also in the middle
        """
        grpc = _grpc()
        messages = self._method(method)(request, timeout=self.where.timeout_s, metadata=self._metadata())
        try:
            yield from messages
        except grpc.RpcError as error:
            raise self._failure(error) from error
        finally:
            messages.cancel()

    def _method(self, name: str) -> Any:
        if self._stub is None:
            from appliance.control.v1 import control_pb2_grpc

            self._channel = self._open()
            self._stub = control_pb2_grpc.ControlStub(self._channel)
        return getattr(self._stub, name)

    def _open(self) -> Any:
        grpc = _grpc()
        options = [("grpc.enable_http_proxy", 0), ("grpc.max_receive_message_length", LONGEST_MESSAGE_BYTES)]
        where = self.where
        if (where.tls_cert is None) != (where.tls_key is None):
            raise CallFailed("--tls-cert and --tls-key belong together; give both.", USAGE)
        if not where.is_tls:
            if where.token and not _is_local(self._address):
                print(
                    f"warning: the token goes to {self._address} without TLS; whoever can read the traffic learns it "
                    "(use --tls-ca).",
                    file=sys.stderr,
                )
            return grpc.insecure_channel(self._address, options)
        ca, key, cert = (_read(path) for path in (where.tls_ca, where.tls_key, where.tls_cert))
        return grpc.secure_channel(self._address, grpc.ssl_channel_credentials(ca, key, cert), options)

    def _metadata(self) -> tuple[tuple[str, str], ...]:
        return (("authorization", f"Bearer {self.where.token}"),) if self.where.token else ()

    def _failure(self, error: Any) -> CallFailed:
        """Say what went wrong.

        1. not allowed                                2. the appliance's own refusal (it carries our details)
        3. nobody there, or no answer in time         4. anything else
        """
        grpc = _grpc()
        code, said = error.code(), error.details() or ""
        is_ours = any(key == "grpc-status-details-bin" for key, _ in error.trailing_metadata() or ())
        if code in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED):  # 1
            return CallFailed(
                said if self.where.token else f"{said} Set CONTROL_TOKEN or CONTROL_TOKEN_FILE.", REFUSED
            )
        if is_ours:  # 2
            return CallFailed(said)
        if code is grpc.StatusCode.UNAVAILABLE:  # 3
            return CallFailed(_unreachable(self._address, said, is_tls=self.where.is_tls), UNREACHABLE)
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            return CallFailed(
                f"The appliance at {self._address} did not answer in time (--timeout).", UNREACHABLE
            )
        return CallFailed(f"The call failed with {code.name}: {said}")  # 4


def _unreachable(address: str, said: str, *, is_tls: bool) -> str:
    lower = said.lower()
    if is_tls and ("handshake" in lower or "ssl" in lower or "certificate" in lower):
        return f"{address} and this command do not accept each other's certificates; check --tls-ca, --tls-cert and --tls-key."
    return f"No appliance answers at {address}. Is it running, and is the address right (--address, CONTROL_ADDRESS)?"


def _is_local(address: str) -> bool:
    host = address.rpartition(":")[0]
    return address.startswith("unix:") or host in {"localhost", "[::1]"} or host.startswith("127.")


def _read(path: Path | None) -> bytes | None:
    if path is None:
        return None
    try:
        return path.read_bytes()
    except OSError as exc:
        raise CallFailed(f"{path} cannot be read: {exc.strerror}.", USAGE) from exc


def _grpc() -> Any:
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # its own lines on stderr would stand between ours
    import grpc

    return grpc
