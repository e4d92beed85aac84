"""Who may call the control API, and whether its settings are safe.

Its only I/O is to read the files that settings name. It does not import gRPC, so that `appliance check` stays
fast. `interceptor.py` uses `Guard` for every call.
"""

import hmac
import ipaddress
import ssl
from collections.abc import Iterable
from pathlib import Path

from appliance.base.errors import Unauthenticated
from appliance.base.settings import HIDDEN, Problem
from appliance.control.settings import ControlSettings

MAX_SOCKET_PATH_BYTES = 107  # sun_path of Linux, less its closing zero
MIN_TOKEN_CHARS = 8


class Guard:
    """Compares a caller's token with CONTROL_TOKEN in constant time. An empty token admits every caller."""

    def __init__(self, token: str) -> None:
        self._token = token.encode()

    def check(self, metadata: Iterable[tuple[str, str | bytes]]) -> None:
        """Admit a caller whose metadata has the token, as `authorization: Bearer …` or `x-api-key: …`.

        Raises:
            Unauthenticated: None of its metadata has it.
        """
        if not self._token:
            return
        sent = [token for key, value in metadata if (token := _token_in(key, value)) is not None]
        # sum(), not any(): no early exit, so the time does not tell which one matched.
        if not sum(hmac.compare_digest(token, self._token) for token in sent):
            raise Unauthenticated(
                "The token does not match CONTROL_TOKEN."
                if sent
                else "A token is required: send it as metadata `authorization: Bearer <CONTROL_TOKEN>`."
            )


def _token_in(key: str, value: str | bytes) -> bytes | None:
    data = value.encode() if isinstance(value, str) else value
    if key == "x-api-key":
        return data.strip()
    if key == "authorization":
        scheme, _, token = data.partition(b" ")
        return token.strip() if scheme.lower() == b"bearer" else None
    return None


def is_loopback(host: str) -> bool:
    """Return whether `host` is this machine only: localhost, 127.0.0.0/8 or ::1."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def problems(settings: ControlSettings) -> list[Problem]:
    """Return all problems of the settings of the control API.

    Returns:
        Problems; those with is_fatal=False are warnings.
    """
    grpc = (
        _tls_problems("GRPC_TLS", settings.grpc_tls_cert, settings.grpc_tls_key) if settings.grpc_port else []
    )
    if not settings.control:
        return grpc
    pair = settings.control_tls_cert, settings.control_tls_key
    return [
        *grpc,
        *_token_problems(settings),
        *_tls_problems("CONTROL_TLS", *pair, settings.control_tls_client_ca),
        *_socket_problems(settings),
        *_reach_problems(settings),
    ]


def _token_problems(settings: ControlSettings) -> list[Problem]:
    token = settings.control_token.get_secret_value()
    if not token:
        return []
    if len(token) < MIN_TOKEN_CHARS:
        return [
            Problem(
                "CONTROL_TOKEN",
                HIDDEN,
                f"at least {MIN_TOKEN_CHARS} characters",
                "The token is too short. Use a long random one.",
            )
        ]
    if not token.isascii() or not token.isprintable() or " " in token:
        return [
            Problem(
                "CONTROL_TOKEN",
                HIDDEN,
                "printable ASCII without spaces",
                "gRPC metadata cannot carry this token. Use another one.",
            )
        ]
    return []


def _tls_problems(prefix: str, cert: Path | None, key: Path | None, ca: Path | None = None) -> list[Problem]:
    """Return the problems of a certificate, its key and the CA of clients; variables begin with `prefix`."""
    found = []
    if (cert is None) != (key is None):
        missing = f"{prefix}_KEY" if key is None else f"{prefix}_CERT"
        found.append(
            Problem(
                missing, "", "a PEM file", "A certificate and its key belong together; set both, or neither."
            )
        )
    if ca is not None and cert is None:
        found.append(
            Problem(
                f"{prefix}_CERT",
                "",
                "a PEM file",
                f"{prefix}_CLIENT_CA needs TLS: set {prefix}_CERT and {prefix}_KEY.",
            )
        )
    files = {f"{prefix}_CERT": cert, f"{prefix}_KEY": key, f"{prefix}_CLIENT_CA": ca}
    unreadable = [
        problem for name, path in files.items() if path is not None and (problem := _unreadable(name, path))
    ]
    if found or unreadable:
        return [*found, *unreadable]
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        if cert is not None:
            # Without this a key with a pass phrase would prompt on the terminal.
            context.load_cert_chain(cert, key, password=lambda: "")
    except (ssl.SSLError, ValueError):
        found.append(
            Problem(
                f"{prefix}_CERT",
                str(cert),
                "a certificate (PEM) and its own key, without a pass phrase",
                "The certificate and the key do not match.",
            )
        )
    try:
        if ca is not None:
            context.load_verify_locations(ca)
    except ssl.SSLError:
        found.append(
            Problem(
                f"{prefix}_CLIENT_CA",
                str(ca),
                "one or more CA certificates (PEM)",
                "The file contains no CA certificate.",
            )
        )
    return found


def _unreadable(name: str, path: Path) -> Problem | None:
    try:
        path.read_bytes()
    except OSError as exc:
        return Problem(name, str(path), "a readable PEM file", f"Cannot read the file: {exc.strerror}.")
    return None


def _socket_problems(settings: ControlSettings) -> list[Problem]:
    path = settings.control_socket
    if path is None:
        return []
    if not path.is_absolute():
        return [Problem("CONTROL_SOCKET", str(path), "an absolute path", "Start it with /.")]
    if len(str(path).encode()) > MAX_SOCKET_PATH_BYTES:
        return [
            Problem(
                "CONTROL_SOCKET",
                str(path),
                f"at most {MAX_SOCKET_PATH_BYTES} bytes",
                "The path is too long for a socket. Choose a shorter one.",
            )
        ]
    return []


def _reach_problems(settings: ControlSettings) -> list[Problem]:
    """Return the problems of an address that other machines can reach.

    1. loopback, or no port            → nothing
    2. neither token nor mutual TLS    → refused
    3. a token, but no TLS             → a warning
    """
    host = settings.control_host
    if settings.control_port == 0 or is_loopback(host):  # 1
        return []
    if not settings.control_token.get_secret_value() and settings.control_tls_client_ca is None:  # 2
        return [
            Problem(
                "CONTROL_HOST",
                host,
                "a loopback address such as 127.0.0.1, unless callers must authenticate",
                "Every client that reaches this port could stop the appliance and change its settings. "
                "Set CONTROL_TOKEN (with CONTROL_TLS_CERT and CONTROL_TLS_KEY), or CONTROL_TLS_CLIENT_CA for "
                "mutual TLS, or listen on 127.0.0.1.",
            )
        ]
    if settings.control_tls_cert is None:  # 3
        return [
            Problem(
                "CONTROL_HOST",
                host,
                "any address",
                "The control API is reachable from other machines without TLS: CONTROL_TOKEN can be "
                "read from the traffic. Set CONTROL_TLS_CERT and CONTROL_TLS_KEY.",
                is_fatal=False,
            )
        ]
    return []
