"""The verb `healthcheck`: checks the server, or a sidecar. It imports little, because it runs often."""

import http.client
import json
import os
import sys

PATIENCE_S = 4
LOOPBACK_OF = {"0.0.0.0": "127.0.0.1", "::": "::1"}


def main() -> int:
    """Print whether the server is healthy; return 0 if so, else 1.

    1. the server listens                      → its /healthz
    2. nothing listens on the server's port    → a sidecar's /health
    """
    host = os.environ.get("PROXY_HOST") or "127.0.0.1"
    host = LOOPBACK_OF.get(host, host)
    port = os.environ.get("PROXY_PORT") or os.environ.get("PORT") or 14000
    try:
        try:
            status, value = _ask(host, int(port), "/healthz")  # 1
            state = str(value.get("state", "?"))
        except ConnectionRefusedError as exc:  # 2
            status, state = _ask_sidecar(exc)
    except (OSError, ValueError) as exc:
        print(f"unhealthy: {host}:{port} does not answer: {exc}", file=sys.stderr)
        return 1
    print(f"{'healthy' if status == 200 else 'unhealthy'}: {state}")
    return 0 if status == 200 else 1


def _ask_sidecar(refused: ConnectionRefusedError) -> tuple[int, str]:
    """Return (status, state) of a sidecar; raise `refused` where another program listens on its port."""
    status, value = _ask("127.0.0.1", int(os.environ.get("SIDECAR_PORT") or 9000), "/health")
    if value.get("service") != "runtime":
        raise refused
    return status, f"sidecar, {value.get('status')}"


def _ask(host: str, port: int, path: str) -> tuple[int, dict[str, object]]:
    """Return (status, JSON object) of an address.

    Raises:
        OSError: It does not answer.
        ValueError: Its response is not a JSON object.
    """
    try:
        connection = http.client.HTTPConnection(host, port, timeout=PATIENCE_S)
        connection.request("GET", path)
        response = connection.getresponse()
        value = json.loads(response.read())
    except http.client.HTTPException as exc:
        raise ValueError(f"{type(exc).__name__}: {exc}") from None
    if not isinstance(value, dict):
        raise ValueError("its response is not a JSON object")
    return response.status, value
