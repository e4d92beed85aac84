"""Who may use control, and how its failures are said: token in constant time, our errors as rich statuses, one log line a call.

`problems` holds the rule that nothing of control is reachable beyond this machine without a token or mutual TLS.
"""

import hmac
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

from appliance.base.errors import ApplianceError, Internal, Unauthenticated
from appliance.base.logs import get_logger
from appliance.base.settings import Problem
from appliance.control.settings import ControlSettings

log = get_logger("control")
OPEN_SERVICES = ("/grpc.health.v1.Health/",)        # a probe has no token
LOOPBACK = {"127.0.0.1", "::1", "localhost"}


def problems(settings: ControlSettings) -> list[Problem]:
    """Say what is wrong with the control settings taken together.

    1. beyond loopback without a token or mutual TLS   → refused       2. certificate without key, or the reverse → refused
    3. a client CA without a certificate                → refused       4. a file that cannot be read              → refused
    5. beyond loopback, token, no TLS                   → a warning     6. nothing to listen on                    → refused
    """
    if not settings.control:
        return []
    found = []
    has_token = bool(settings.control_token.get_secret_value())
    has_tls = settings.control_tls_cert is not None and settings.control_tls_key is not None
    is_mutual = has_tls and settings.control_tls_client_ca is not None
    is_beyond = settings.control_port != 0 and settings.control_host not in LOOPBACK and not settings.control_host.startswith("127.")
    if is_beyond and not has_token and not is_mutual:                                                       # 1
        found.append(Problem("CONTROL_HOST", settings.control_host, "a loopback address, or any with CONTROL_TOKEN or mutual TLS",
                             "Whoever reaches the control API can stop the appliance and read its log. Set CONTROL_TOKEN, or "
                             "CONTROL_TLS_CERT, CONTROL_TLS_KEY and CONTROL_TLS_CLIENT_CA, or use 127.0.0.1 or CONTROL_SOCKET."))
    if (settings.control_tls_cert is None) != (settings.control_tls_key is None):                           # 2
        found.append(Problem("CONTROL_TLS_CERT", str(settings.control_tls_cert or ""), "set together with CONTROL_TLS_KEY", "Set both or none."))
    if settings.control_tls_client_ca is not None and not has_tls:                                          # 3
        found.append(Problem("CONTROL_TLS_CLIENT_CA", str(settings.control_tls_client_ca), "set together with CONTROL_TLS_CERT and CONTROL_TLS_KEY",
                             "Set the certificate and its key too."))
    for name in ("control_tls_cert", "control_tls_key", "control_tls_client_ca"):                           # 4
        path: Path | None = getattr(settings, name)
        if path is not None and not os.access(path, os.R_OK):
            found.append(Problem(name.upper(), str(path), "a readable PEM file", "It cannot be read; mount it there."))
    if is_beyond and has_token and not has_tls:                                                             # 5
        found.append(Problem("CONTROL_HOST", settings.control_host, "any address", "The control token travels unencrypted beyond this machine: "
                             "whoever listens on the way can take it. Set CONTROL_TLS_CERT and CONTROL_TLS_KEY.", is_fatal=False))
    if settings.control_port == 0 and settings.control_socket is None:                                      # 6
        found.append(Problem("CONTROL_PORT", "0", "a port, or 0 with CONTROL_SOCKET", "Name a socket, or switch control off with CONTROL=0."))
    return found


class Guard:
    """Wraps every handler of the service."""

    def __init__(self, token: str) -> None:
        self._token = token.encode()

    def check(self, metadata: Any) -> None:
        """Raise Unauthenticated unless the call shows the token (`authorization: Bearer …` or `x-api-key: …`)."""
        if not self._token:
            return
        fields = dict(metadata or ())
        scheme, _, given = str(fields.get("authorization", "")).partition(" ")
        given = given if scheme.lower() == "bearer" else str(fields.get("x-api-key", ""))
        if not hmac.compare_digest(given.strip().encode(), self._token):
            raise Unauthenticated("The control token is missing or wrong; send it as `authorization: Bearer TOKEN`.")

    def unary(self, name: str, handler: Callable[[Any, Any], Awaitable[Any]]) -> Callable[[Any, Any], Awaitable[Any]]:
        async def guarded(request: Any, context: Any) -> Any:
            try:
                self.check(context.invocation_metadata())
                return await handler(request, context)
            except ApplianceError as error:
                await refuse(context, name, error)
            except Exception as error:
                if _is_abort(error):
                    raise
                log.error("unhandled", call=name, error=repr(error), exc_info=error)
                await refuse(context, name, Internal("Something failed inside the appliance; its log has the details."))
        return guarded

    def stream(self, name: str, handler: Callable[[Any, Any], AsyncIterator[Any]]) -> Callable[[Any, Any], AsyncIterator[Any]]:
        async def guarded(request: Any, context: Any) -> AsyncIterator[Any]:
            try:
                self.check(context.invocation_metadata())
                async for message in handler(request, context):
                    yield message
            except ApplianceError as error:
                await refuse(context, name, error)
            except Exception as error:
                if _is_abort(error):
                    raise
                log.error("unhandled", call=name, error=repr(error), exc_info=error)
                await refuse(context, name, Internal("Something failed inside the appliance; its log has the details."))
        return guarded


def _is_abort(error: Exception) -> bool:
    return type(error).__name__ in {"AbortError", "BaseError"}


async def refuse(context: Any, name: str, error: ApplianceError) -> None:
    """End a call with an error's status."""
    from appliance.control.errors import status_of

    log.info("refused", call=name, kind=error.kind.value, reason=error.message)
    await context.abort_with_status(status_of(error))
