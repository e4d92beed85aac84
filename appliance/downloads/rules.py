"""What a download may do and with which keys: the wish's config before the operator's settings, and the operator's keys only to the operator's
servers.

A caller over HTTP is not the operator. It may name an endpoint, but then has to bring the credentials for it: else whoever may ask for a
download could have the operator's token sent to a server of theirs. The person at the terminal is the operator (`is_trusted`).
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

# system E's keys, each with the setting that stands in for it
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
OWN = ("revision", "include", "exclude", "checksum", "path_style", "region", "anonymous", "ms_endpoint")
MODELSCOPE = "https://modelscope.cn"
# scheme → (the endpoint's key, the keys of its credentials)
BELONGS = {
    "hf": ("hf_endpoint", ("hf_token",)),
    "s3": ("endpoint", ("access_key", "secret_key")),
    "obs": ("endpoint", ("access_key", "secret_key")),
    "ms": ("ms_endpoint", ("ms_token",)),
}


@dataclass(frozen=True, slots=True)
class DownloadRules:
    """What the operator allows. `output_roots`: folders that downloads may be put in, None = every folder."""

    settings: DownloadSettings = field(repr=False)
    output_roots: tuple[Path, ...] | None
    is_trusted: bool

    @property
    def folders(self) -> FolderPolicy:
        entries = self.settings.download_allowed_dirs
        return FolderPolicy(None) if self.is_trusted and not entries else FolderPolicy.listed(entries)

    def reach_of(self, scheme: str, config: Mapping[str, str]) -> HostPolicy:
        """Give which hosts may be asked: 1. https names any host, so only listed ones   2. the operator's endpoint   3. a caller's: public ones."""
        entries = self.settings.download_allowed_hosts
        if scheme == "https":  # 1
            return (
                HostPolicy.unrestricted() if self.is_trusted and not entries else HostPolicy.listed(entries)
            )
        key = BELONGS.get(scheme, ("", ()))[0]
        if self.is_trusted or config.get(key, "") == self._own(key):  # 2
            return HostPolicy.unrestricted()
        return HostPolicy.listed(entries, any_name=True)  # 3

    def check_output(self, folder: Path) -> None:
        """Raises  Invalid, Forbidden: not a folder that downloads may be put in"""
        if not folder.is_absolute() or "\0" in str(folder) or ".." in folder.parts:
            raise Invalid("output_dir must be the absolute path of a folder.", param="output_dir")
        if self.output_roots is not None and not FolderPolicy.listed(self.output_roots).allows(folder):
            raise Forbidden(
                f"{folder} is not below a folder that downloads may be put in: DOWNLOAD_DIR, or one of DOWNLOAD_ALLOWED_DIRS.",
                param="output_dir",
                code="folder_not_allowed",
            )

    def config_of(self, request: DownloadRequest, scheme: str) -> dict[str, str]:
        """Choose each key between the wish and the settings.

        Gives   all keys that have a value, credentials among them
        Raises  Invalid: a key that does not exist, an endpoint that is no address
        """
        given = {
            key: str(value).strip()
            for key, value in request.config.items()
            if value is not None and str(value).strip()
        }
        for key in given:
            if key not in FROM_SETTINGS and key not in OWN:
                near = difflib.get_close_matches(key, [*FROM_SETTINGS, *OWN], n=1)
                raise Invalid(
                    f"There is no config key {key[:40]!r}. {f'Did you mean {near[0]}? ' if near else ''}"
                    f"Known: {', '.join([*FROM_SETTINGS, *OWN])}.",
                    param="config",
                )
        chosen = {key: value for key in (*FROM_SETTINGS, "ms_endpoint") if (value := self._own(key))} | given
        for endpoint, secrets in BELONGS.values():
            self._part(endpoint, secrets, given, chosen)
        if scheme in BELONGS and (address := chosen.get(BELONGS[scheme][0], "")):
            _check_address(BELONGS[scheme][0], address)
        return chosen

    def _part(
        self, endpoint: str, secrets: tuple[str, ...], given: dict[str, str], chosen: dict[str, str]
    ) -> None:
        """Take the operator's credentials out: 1. half of a pair was given   2. somebody else's endpoint was."""
        is_half = any(key in given for key in secrets)  # 1
        is_other = endpoint in given and given[endpoint] != self._own(endpoint) and not self.is_trusted  # 2
        for key in secrets:
            if key not in given and (is_half or is_other):
                chosen.pop(key, None)

    def _own(self, key: str) -> str:
        if key == "ms_endpoint":
            return MODELSCOPE
        value = getattr(self.settings, FROM_SETTINGS[key]) if key in FROM_SETTINGS else ""
        return value.get_secret_value() if isinstance(value, SecretStr) else str(value)


def _check_address(key: str, address: str) -> None:
    try:
        parts = urlsplit(address)
        is_address = parts.scheme in {"http", "https"} and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        is_address = False
    if not is_address or parts.username is not None or parts.password is not None or parts.query:
        raise Invalid(
            f"{key} is not an http(s) address without credentials, such as https://example.com.",
            param=f"config.{key}",
        )
