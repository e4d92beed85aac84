"""What a download may do, and which credentials it uses.

A request's config takes precedence over the settings. The settings' credentials are sent to the settings'
servers only.

A caller over HTTP is not the operator. It may name an endpoint, but must then send the credentials for it:
otherwise any caller could have the operator's token sent to the caller's own server. The person at the
terminal is the operator (`is_trusted`).
"""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from pydantic import SecretStr

from appliance.base.errors import Forbidden, Invalid
from appliance.base.reach import FolderPolicy, HostPolicy
from appliance.downloads.contract import DownloadRequest
from appliance.downloads.settings import DownloadSettings

# Keys of `config`, each with the setting that is its default.
FROM_SETTINGS = {
    "hf_token": "hf_auth_token",
    "hf_endpoint": "hf_endpoint",
    "hf_revision": "hf_revision",
    "ms_token": "ms_token",
    "ms_revision": "ms_revision",
    "access_key": "access_key",
    "secret_key": "secret_key",
    "endpoint": "endpoint",
}
# Keys without such a setting.
REQUEST_ONLY = (
    "revision",
    "include",
    "exclude",
    "checksum",
    "path_style",
    "region",
    "anonymous",
    "ms_endpoint",
)
MODELSCOPE = "https://modelscope.cn"
# Scheme → the key of its endpoint, and the keys of the credentials for that.
ENDPOINTS = {
    "hf": ("hf_endpoint", ("hf_token",)),
    "s3": ("endpoint", ("access_key", "secret_key")),
    "obs": ("endpoint", ("access_key", "secret_key")),
    "ms": ("ms_endpoint", ("ms_token",)),
}


@dataclass(frozen=True, slots=True)
class DownloadRules:
    """What the operator allows. `output_roots`: where downloads may be written to, None = everywhere."""

    settings: DownloadSettings = field(repr=False)
    output_roots: tuple[Path, ...] | None
    is_trusted: bool

    @property
    def folders(self) -> FolderPolicy:
        """Which folders of this machine may be read."""
        entries = self.settings.download_allowed_dirs
        return FolderPolicy(None) if self.is_trusted and not entries else FolderPolicy.listed(entries)

    def reach_of(self, scheme: str, config: Mapping[str, str]) -> HostPolicy:
        """Return which hosts may be contacted.

        1. https, which names any host  → listed ones
        2. the operator's endpoint      → every host
        3. a caller's own endpoint      → public ones
        """
        entries = self.settings.download_allowed_hosts
        if scheme == "https":  # 1
            return (
                HostPolicy.unrestricted() if self.is_trusted and not entries else HostPolicy.listed(entries)
            )
        key = ENDPOINTS.get(scheme, ("", ()))[0]
        if self.is_trusted or config.get(key, "") == self._setting(key):  # 2
            return HostPolicy.unrestricted()
        return HostPolicy.listed(entries, any_name=True)  # 3

    def check_output(self, folder: Path) -> None:
        """Check the folder that a download is to be written to.

        Raises:
            Invalid: It is no absolute path.
            Forbidden: It is not below a folder for downloads.
        """
        if not folder.is_absolute() or "\0" in str(folder) or ".." in folder.parts:
            raise Invalid("`output_dir` must be the absolute path of a folder.", param="output_dir")
        if self.output_roots is not None and not FolderPolicy.listed(self.output_roots).allows(folder):
            raise Forbidden(
                f"{folder} is outside the download folders (DOWNLOAD_DIR, DOWNLOAD_ALLOWED_DIRS).",
                param="output_dir",
                code="folder_not_allowed",
            )

    def choose_config(self, request: DownloadRequest, scheme: str) -> dict[str, str]:
        """Choose each key between the request and the settings.

        Returns:
            All keys that have a value, credentials among them.

        Raises:
            Invalid: A key does not exist, or an endpoint is no address.
        """
        given = {key: str(value).strip() for key, value in request.config.items() if value is not None}
        given = {key: value for key, value in given.items() if value}
        for key in given:
            _check_key(key)
        own = {key: value for key in (*FROM_SETTINGS, "ms_endpoint") if (value := self._setting(key))}
        chosen = own | given
        for endpoint, secrets in ENDPOINTS.values():
            self._withhold(endpoint, secrets, given, chosen)
        if scheme in ENDPOINTS and (address := chosen.get(ENDPOINTS[scheme][0], "")):
            _check_address(ENDPOINTS[scheme][0], address)
        return chosen

    def _withhold(
        self, endpoint: str, secrets: tuple[str, ...], given: dict[str, str], chosen: dict[str, str]
    ) -> None:
        """Remove the settings' credentials where 1. part of a pair, or 2. another endpoint was given."""
        has_part = any(key in given for key in secrets)  # 1
        has_other_endpoint = given.get(endpoint, self._setting(endpoint)) != self._setting(endpoint)  # 2
        for key in secrets:
            if key not in given and (has_part or (has_other_endpoint and not self.is_trusted)):
                chosen.pop(key, None)

    def _setting(self, key: str) -> str:
        if key == "ms_endpoint":
            return MODELSCOPE
        value = getattr(self.settings, FROM_SETTINGS[key]) if key in FROM_SETTINGS else ""
        return value.get_secret_value() if isinstance(value, SecretStr) else str(value)


def _check_key(key: str) -> None:
    known = [*FROM_SETTINGS, *REQUEST_ONLY]
    if key in known:
        return
    near = difflib.get_close_matches(key, known, n=1)
    hint = f"Did you mean {near[0]}? " if near else ""
    raise Invalid(f"Unknown config key {key[:40]!r}. {hint}Known: {', '.join(known)}.", param="config")


def _check_address(key: str, address: str) -> None:
    try:
        parts = urlsplit(address)
        is_address = parts.scheme in {"http", "https"} and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        is_address = False
    if not is_address or parts.username is not None or parts.password is not None or parts.query:
        raise Invalid(
            f"`{key}` must be an http(s) address without credentials, such as https://example.com.",
            param=f"config.{key}",
        )
