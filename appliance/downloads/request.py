"""Download requests of callers, parsed and checked in the same way for HTTP, gRPC and Ollama's pull.

Credentials are accepted in `config` only. They are passed to the downloader, and never appear in a job, a
file, a log line or an error.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from appliance.base import jsons
from appliance.base.errors import Forbidden, Invalid
from appliance.downloads.contract import DEFAULT_WORKERS, MAX_WORKERS, DownloadRequest, redact_source

MAX_SOURCE_CHARS = 2048
MIN_SECRET_CHARS = 4  # a shorter text is too common to be redacted everywhere
# Keys of `config` that may be shown and kept; any other, known or not, counts as a secret.
PUBLIC_KEYS = frozenset(
    {
        "hf_endpoint",
        "hf_revision",
        "ms_revision",
        "endpoint",
        "region",
        "revision",
        "include",
        "exclude",
        "checksum",
        "path_style",
        "anonymous",
        "ms_endpoint",
    }
)
ADDRESS_KEYS = ("hf_endpoint", "endpoint", "ms_endpoint")
# The environment variables of credentials that `config` does not have.
VARIABLES_OF = {
    "hf_token": ("HF_AUTH_TOKEN",),
    "ms_token": ("MS_TOKEN",),
    "access_key": ("ACCESS_KEY",),
    "secret_key": ("SECRET_KEY",),
}
# The name, as a credential, of the query of a signed address.
SIGNED_QUERY = "the query of its address"


@dataclass(frozen=True, slots=True)
class DownloadFolders:
    """The folders for downloads, with all below them: `home`, the base of relative paths, and `others`."""

    home: Path
    others: tuple[Path, ...] = ()

    def resolve_folder(self, text: str) -> Path:
        """Return the folder that a caller names, symbolic links followed (blocks).

        Raises:
            Invalid: It is no path.
            Forbidden: It is outside the folders.
        """
        if not text or "\0" in text or not text.isprintable():
            raise Invalid(
                "`output_dir` must be the path of a folder.", param="output_dir", code="invalid_value"
            )
        if text.startswith("~"):
            raise Invalid(
                f"`output_dir` {text[:200]!r}: `~` is not expanded. Write an absolute path, or one below the "
                "download folder.",
                param="output_dir",
                code="invalid_value",
            )
        try:
            path = (self.home / text).resolve()
            roots = [root.resolve() for root in (self.home, *self.others)]
        except (OSError, RuntimeError) as exc:
            raise Invalid(
                f"`output_dir` cannot be used: {exc}.", param="output_dir", code="invalid_value"
            ) from None
        if not any(path == root or root in path.parents for root in roots):
            allowed = ", ".join(map(str, (self.home, *self.others)))
            raise Forbidden(
                f"{text} is outside the download folders ({allowed}). Choose a folder below them, "
                "or add it to DOWNLOAD_ALLOWED_DIRS.",
                param="output_dir",
                code="outside_allowed_folders",
            )
        return path


def parse_download_request(
    source: str | None,
    output_dir: str | None,
    *,
    folders: DownloadFolders,
    config: Any = None,
    max_workers: int | None = None,
) -> DownloadRequest:
    """Parse what a caller asks for (blocks: paths are looked up).

    Args:
        source: Required; None = the caller left it out.
        output_dir: Required, as `source`.
        folders: The folders for downloads.
        config: An object, the same as JSON text, or None.
        max_workers: 1 to `MAX_WORKERS`, None = `DEFAULT_WORKERS`.

    Raises:
        Invalid: A field is missing or wrong.
        Forbidden: `output_dir` is outside the allowed folders.
    """
    for name, value in (("source", source), ("output_dir", output_dir)):
        if not value:
            raise Invalid(f"`{name}` is required.", param=name, code="missing_required_parameter")
    assert source is not None
    assert output_dir is not None
    workers = parse_max_workers(max_workers)
    return DownloadRequest(
        parse_source(source), folders.resolve_folder(output_dir), workers, parse_config(config)
    )


def parse_max_workers(value: int | None) -> int:
    """Return `max_workers`; None = `DEFAULT_WORKERS`.

    Raises:
        Invalid: It is out of range.
    """
    workers = DEFAULT_WORKERS if value is None else value
    if not 1 <= workers <= MAX_WORKERS:
        raise Invalid(
            f"`max_workers` must be from 1 to {MAX_WORKERS}, not {workers}.",
            param="max_workers",
            code="out_of_range",
        )
    return workers


def parse_source(text: str) -> str:
    """Return a source with its scheme; a bare `ns/repo` is Hugging Face's.

    Raises:
        Invalid: It is no source, or has a user or password in it (which is not repeated).
    """
    text = text.strip()
    if not text or len(text) > MAX_SOURCE_CHARS or not text.isprintable() or " " in text:
        raise Invalid(
            "`source` must be an address such as hf://namespace/repository or s3://bucket/path.",
            param="source",
            code="invalid_value",
        )
    scheme, found, rest = text.partition("://")
    if not found:
        scheme, rest = "hf", text
    whole = f"{scheme.lower()}://{rest}"
    if _has_user_info(whole):
        raise Invalid(
            "`source` contains a user or a password. Remove them, and send credentials in `config`.",
            param="source",
            code="credentials_in_source",
        )
    return whole.rstrip("/") or whole


def default_folder(source: str) -> str:
    """Return the folder of a source that comes without one, relative to the download folder: `hf/ns/repo`."""
    scheme, _, rest = redact_source(source).partition("://")
    return "/".join([scheme, *(piece for piece in rest.split("/") if piece not in {"", ".", ".."})])


def parse_config(value: Any) -> dict[str, str]:
    """Return `config` as strings by name; null and empty values are left out.

    Args:
        value: An object, the same as JSON text, or None.

    Raises:
        Invalid: It is no object of plain values. The error never repeats a value.
    """
    if isinstance(value, str):
        try:
            value = jsons.loads(value) if value.strip() else {}
        except jsons.InvalidJson:  # its message may contain a piece of the text
            raise Invalid("`config` is not valid JSON.", param="config", code="invalid_json") from None
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise Invalid("`config` must be a JSON object, or one as text.", param="config", code="invalid_type")
    given = {str(key): one for key, one in value.items() if one is not None and one != ""}
    found = {key: _config_text(key, one) for key, one in given.items()}
    for key in ADDRESS_KEYS:
        if _has_user_info(found.get(key, "")):
            raise Invalid(
                f"`config.{key}` contains a user or a password. Send credentials under their own names.",
                param=f"config.{key}",
                code="credentials_in_address",
            )
    return found


def _config_text(key: str, value: Any) -> str:
    """Return one value as text: 1. a boolean   2. a text or a number   3. a list of patterns."""
    if isinstance(value, bool):  # 1
        return "true" if value else "false"
    if isinstance(value, str) or (isinstance(value, int | float) and math.isfinite(value)):  # 2
        return str(value)
    is_list = isinstance(value, list | tuple) and all(isinstance(one, str) for one in value)
    if key in {"include", "exclude"} and is_list:  # 3
        return ",".join(value)
    raise Invalid(
        f"`config.{key[:64]}` must be a string, a number or a boolean.",
        param=f"config.{key[:64]}",
        code="invalid_type",
    )


def _has_user_info(address: str) -> bool:
    return "@" in address.partition("://")[2].partition("/")[0].partition("?")[0]


# ---- public and secret parts


def public_config(config: Mapping[str, str]) -> dict[str, str]:
    """Return the part of `config` that may be shown and kept."""
    return {key: value for key, value in config.items() if key in PUBLIC_KEYS}


def credential_names(request: DownloadRequest) -> tuple[str, ...]:
    """List the names of the credentials that came with a request, not their values."""
    signed = (SIGNED_QUERY,) if redact_source(request.source) != request.source else ()
    return tuple(key for key in request.config if key not in PUBLIC_KEYS) + signed


def secret_texts(request: DownloadRequest) -> list[str]:
    """Return every text of a request that must never be shown, the longest first."""
    parts = urlsplit(request.source)
    texts = [value for key, value in request.config.items() if key not in PUBLIC_KEYS]
    texts += [parts.query, parts.fragment, *(value for _, value in parse_qsl(parts.query))]
    return sorted({text for text in texts if len(text) >= MIN_SECRET_CHARS}, key=len, reverse=True)


def find_missing_credentials(needs: tuple[str, ...], has_variable: Callable[[str], bool]) -> list[str]:
    """List the credentials of an earlier run that the environment lacks, each with its variables.

    Args:
        needs: Names of credentials, as `credential_names` returns them.
        has_variable: Says whether the environment has a variable.
    """
    missing = [name for name in needs if not any(map(has_variable, VARIABLES_OF.get(name, ())))]
    return [
        f"{name} ({' or '.join(VARIABLES_OF[name])})" if name in VARIABLES_OF else name for name in missing
    ]
