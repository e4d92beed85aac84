"""Requests to an appliance over HTTP: bounded, without redirects, with one sentence for whatever fails."""

import http.client
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote, urlencode, urlsplit

from appliance.base import jsons

BASE: Final = "/api/v1"
REFUSED, NOT_REACHABLE = 1, 3  # exit codes
PATIENCE_S: Final = 150.0  # a reservation of 16 instances takes a minute
MAX_BYTES: Final = 64 * 1024 * 1024
MAX_SHOWN: Final = 2000
LOOPBACK: Final = ("localhost", "127.0.0.1", "::1")
KEY_HELP: Final = "Give a key by -key or GPUPROXY_API_KEY, or log in: aiserve-gpuproxy-client login EMAIL."


class ApiFailure(Exception):
    """A request was not served.

    Attributes:
        message: One sentence for people.
        exit_code: REFUSED or NOT_REACHABLE.
        code: The error's name, such as `insufficient_credits`; "" = none.
        status: Of HTTP; 0 = there was no response.
        body: The response's object; {} = none.
        is_sent: Whether the order may have reached the appliance though no response came.
    """

    def __init__(
        self,
        message: str,
        exit_code: int = REFUSED,
        *,
        code: str = "",
        status: int = 0,
        body: dict[str, Any] | None = None,
        is_sent: bool = False,
    ) -> None:
        super().__init__(message)
        self.message, self.exit_code, self.code = message, exit_code, code
        self.status, self.body, self.is_sent = status, body or {}, is_sent


class _StayHere(urllib.request.HTTPRedirectHandler):
    """Follows no redirect: a key must not go to another server."""

    def redirect_request(self, *_: Any) -> None:
        return None


@dataclass(slots=True)
class ApiClient:
    """One appliance.

    Attributes:
        address: Such as http://localhost:8080; a `/api/v1` at its end is left away.
        headers: The credential; called for each request.
        trace: Takes lines about each request, never a key; None = nothing is told.
    """

    address: str
    headers: Callable[[], dict[str, str]] = dict
    trace: Callable[[str], None] | None = None

    def __post_init__(self) -> None:
        self.address = self.address.rstrip("/").removesuffix(BASE).rstrip("/")
        try:
            parts = urlsplit(self.address)
            is_right = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            is_right = False
        if not is_right or parts.username is not None or parts.query or not self.address.isprintable():
            raise ApiFailure(
                "The address of -api must be one such as http://localhost:8080 or https://gpu.example.org, "
                "without a key in it.",
                NOT_REACHABLE,
            )

    def call(
        self,
        method: str,
        path: str,
        body: dict[str, Any] | None = None,
        *,
        query: dict[str, Any] | None = None,
        headers: dict[str, str] | None = None,
        base: str = BASE,
        timeout_s: float = PATIENCE_S,
    ) -> dict[str, Any]:
        """Send a request and return the response's object.

        Args:
            method: GET, POST …
            path: Below `base`, quoted (`quoted`).
            body: Sent as JSON; None = no body.
            query: What is empty is left out.
            headers: Beside the credential.
            base: "" for addresses outside /api/v1.
            timeout_s: Seconds without a byte.

        Raises:
            ApiFailure: No response came, or it is a refusal.
        """
        wanted = {name: value for name, value in (query or {}).items() if value not in (None, "")}
        target = f"{base}{path}" + (f"?{urlencode(wanted)}" if wanted else "")
        data = None if body is None else jsons.dumps(body)
        sent = {"Accept": "application/json", "User-Agent": "aiserve-gpuproxy-client", **(headers or {})}
        if data is not None:
            sent["Content-Type"] = "application/json"
        request = urllib.request.Request(  # noqa: S310 - __post_init__ allows http and https alone
            self.address + target, data, {**sent, **self.headers()}, method=method
        )
        began_s = time.monotonic()
        status, raw, request_id = self._send(request, timeout_s)
        if self.trace is not None:
            took_ms = (time.monotonic() - began_s) * 1000
            self.trace(f"{method} {target} -> {status}, {len(raw)} bytes, {took_ms:.0f} ms, {request_id}")
        found = _object(raw)
        if not 200 <= status < 300:
            raise refusal(status, found)
        if found is None:
            raise ApiFailure(
                f"What {self.address} sent is no JSON object. Is it an appliance? -api names its address.",
                NOT_REACHABLE,
                status=status,
            )
        return found

    def _send(self, request: urllib.request.Request, timeout_s: float) -> tuple[int, bytes, str]:
        """Return (status, body, request id) of whatever the server says.

        Raises:
            ApiFailure: It says nothing, or too much.
        """
        handlers: list[urllib.request.BaseHandler] = [_StayHere()]
        if urlsplit(self.address).hostname in LOOPBACK:
            handlers.append(urllib.request.ProxyHandler({}))
        opener = urllib.request.build_opener(*handlers)
        try:
            try:
                response = opener.open(request, timeout=timeout_s)
            except urllib.error.HTTPError as error:
                response = error
            with response:
                raw = response.read(MAX_BYTES + 1)
                status, request_id = response.status, response.headers.get("X-Request-ID") or "no request id"
        except urllib.error.URLError as error:  # it could not be sent
            raise ApiFailure(
                f"No appliance responds at {self.address}: {_reason(error.reason)}. -api names its address.",
                NOT_REACHABLE,
            ) from None
        except (OSError, http.client.HTTPException) as error:
            raise ApiFailure(
                f"The connection to {self.address} ended before the response: {_reason(error)}.",
                NOT_REACHABLE,
                is_sent=True,
            ) from None
        if len(raw) > MAX_BYTES:
            raise ApiFailure(f"The response is larger than {MAX_BYTES} bytes.", status=status)
        return status, raw, request_id


def quoted(*words: str) -> str:
    """Return words as pieces of a path: `/vast.ai/12345`."""
    return "".join(f"/{quote(word, safe='')}" for word in words)


def refusal(status: int, body: dict[str, Any] | None) -> ApiFailure:
    """Return what a response that is no success says.

    1. `{error: text, code}`                → the text
    2. `{error: {message, code}}`           → the message
    3. anything else                        → the status
    4. 401                                  → also how to give a key
    """
    found = body or {}
    error: Any = found.get("error")
    code: Any = found.get("code")
    if isinstance(error, dict):  # 2
        error, code = error.get("message"), error.get("code")
    text = error if isinstance(error, str) and error else f"The appliance refused it with status {status}."
    if status in range(300, 400):
        text = (
            f"The address leads elsewhere (status {status}), which is not followed: -api names the right one."
        )
    if status == 401:  # 4
        text = f"{text.rstrip('.')}. {KEY_HELP}"
    return ApiFailure(text[:MAX_SHOWN], code=code if isinstance(code, str) else "", status=status, body=found)


def _object(raw: bytes) -> dict[str, Any] | None:
    """Return a JSON object; None = it is none."""
    try:
        found = jsons.loads(raw)
    except (jsons.InvalidJson, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _reason(error: object) -> str:
    if isinstance(error, TimeoutError):
        return "it takes too long"
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return str(text).rstrip(".")[:200]
