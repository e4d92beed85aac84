"""The login of `login`: tokens in a file that its owner alone can read, refreshed when they expire."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

from appliance.base import jsons
from appliance.base.files import write_atomic
from appliance.gpuproxy_client.api import ApiClient, ApiFailure

FOLDER: Final = "aiserve-gpuproxy"
EARLY_S: Final = 30.0  # a token that ends sooner is refreshed first


def login_path(environ: Mapping[str, str], address: str) -> Path:
    """Return where the login at an appliance is kept."""
    home = environ.get("XDG_CONFIG_HOME") or str(Path(environ.get("HOME") or "/") / ".config")
    return Path(home) / FOLDER / f"login-{sha256(address.encode()).hexdigest()[:16]}.json"


@dataclass(slots=True)
class KeptLogin:
    """The login at one appliance.

    Attributes:
        path: Its file.
        now_s: The time, seconds since 1970.
    """

    path: Path
    now_s: Callable[[], float]

    def exists(self) -> bool:
        """Whether there is one."""
        return self.path.exists()

    def keep(self, tokens: Any) -> None:
        """Keep the tokens of a login or of a refresh.

        Raises:
            ApiFailure: There are none, or the file cannot be written.
        """
        names = ("access_token", "refresh_token", "expires_at")
        if not isinstance(tokens, dict) or not all(isinstance(tokens.get(name), str) for name in names):
            raise ApiFailure("The response to the login has no tokens.")
        try:
            write_atomic(self.path, jsons.dumps({name: tokens[name] for name in names}))
        except OSError as error:
            raise ApiFailure(f"The login cannot be kept in {self.path}: {error.strerror}.") from None

    def forget(self) -> None:
        """Remove the file."""
        with suppress(FileNotFoundError):
            self.path.unlink()

    def read(self) -> dict[str, str]:
        """Return the tokens; {} = there are none, or the file is damaged."""
        try:
            found = jsons.loads(self.path.read_bytes())
        except (OSError, jsons.InvalidJson):
            return {}
        is_right = isinstance(found, dict) and all(isinstance(value, str) for value in found.values())
        return found if is_right else {}

    def access_token(self, api: ApiClient) -> str:
        """Return a token that is valid; "" = there is no login.

        Raises:
            ApiFailure: The session has ended, or the appliance does not answer.
        """
        found = self.read()
        if not found:
            return ""
        if self._ends_s(found) - self.now_s() > EARLY_S:
            return found["access_token"]
        open_api = ApiClient(api.address, trace=api.trace)
        try:
            body = open_api.call("POST", "/auth/refresh", {"refresh_token": found.get("refresh_token", "")})
        except ApiFailure as failure:
            if failure.status in (400, 401):
                self.forget()
                raise ApiFailure(
                    "The login has ended. Log in again: aiserve-gpuproxy-client login EMAIL.", status=401
                ) from None
            raise
        self.keep(body.get("tokens"))
        return self.read().get("access_token", "")

    def _ends_s(self, found: dict[str, str]) -> float:
        try:
            return datetime.fromisoformat(found.get("expires_at", "")).timestamp()
        except (ValueError, OverflowError):
            return 0.0


def credential_headers(
    api: ApiClient, login: KeptLogin, *, key: str, environ: Mapping[str, str]
) -> dict[str, str]:
    """Return what says who calls.

    1. -key                → that key
    2. GPUPROXY_API_KEY    → that key
    3. a login             → its access token
    4. none                → nothing: the appliance says what it needs

    Raises:
        ApiFailure: The key cannot be sent, or the login has ended.
    """
    key = (key or environ.get("GPUPROXY_API_KEY", "")).strip()
    if key:  # 1, 2
        if not key.isascii() or not key.isprintable() or " " in key:
            raise ApiFailure("The key has signs that no key has. Was something else pasted?")
        return {"X-API-Key": key}
    token = login.access_token(api)
    return {"Authorization": f"Bearer {token}"} if token else {}
