"""The wire of the command line: a channel to a running appliance's control API, and its failures in one sentence each."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from appliance.control.v1 import control_pb2_grpc

DEFAULT_ADDRESS = "127.0.0.1:50051"


@dataclass(frozen=True, slots=True)
class Target:
    """Where the control API is, and what to show it. The token comes from CONTROL_TOKEN or CONTROL_TOKEN_FILE, never from arguments."""

    address: str = DEFAULT_ADDRESS
    timeout_s: float = 10.0
    tls_ca: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None


class Failed(Exception):
    """The call did not work out; `code` is the exit code: 3 unreachable, 4 refused, 1 anything else."""

    def __init__(self, text: str, code: int) -> None:
        super().__init__(text)
        self.code = code


def token() -> str:
    """Give the control token of the environment, or ""."""
    if path := os.environ.get("CONTROL_TOKEN_FILE"):
        try:
            return Path(path).read_text().strip()
        except OSError as exc:
            raise Failed(f"CONTROL_TOKEN_FILE={path} cannot be read: {exc.strerror}.", 2) from exc
    return os.environ.get("CONTROL_TOKEN", "")


@contextmanager
def calling(target: Target) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Open a channel; give (stub, keyword arguments of every call). gRPC's errors leave as Failed."""
    if target.tls_ca is not None:
        files = [p.read_bytes() if p else None for p in (target.tls_ca, target.tls_key, target.tls_cert)]
        channel = grpc.secure_channel(target.address, grpc.ssl_channel_credentials(*files))
    else:
        channel = grpc.insecure_channel(target.address)
    metadata = [("authorization", f"Bearer {given}")] if (given := token()) else []
    try:
        yield control_pb2_grpc.ControlStub(channel), {"metadata": metadata}
    except grpc.RpcError as exc:
        raise _failed(exc, target) from exc
    finally:
        channel.close()


def _failed(exc: Any, target: Target) -> Failed:
    code, text = exc.code(), exc.details()
    if code is grpc.StatusCode.UNAVAILABLE and ("connect" in text.lower() or "dns" in text.lower() or "socket" in text.lower()):
        return Failed(f"No appliance answers at {target.address}. Is it running? Set --address or CONTROL_ADDRESS.", 3)
    if code in {grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED}:
        return Failed(f"{text} Set CONTROL_TOKEN or CONTROL_TOKEN_FILE.", 4)
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return Failed(f"{target.address} did not answer within {target.timeout_s:g} s.", 3)
    return Failed(text or code.name, 1)
