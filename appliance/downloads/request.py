"""What a caller asks to be downloaded, read and checked: one reading for HTTP, gRPC and Ollama's pull.

Credentials come in `config` and nowhere else; they go to whoever downloads, and into no job, no file, no log line and no error.
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
MIN_SECRET_CHARS = 4  # characters: a shorter text is too common to be blanked wherever it stands
# Keys of `config` that may be seen and kept; any other, known or not, is taken for a secret.
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
# Where the credentials are found when `config` does not have them.
VARIABLES_OF = {
    "hf_token": ("HF_AUTH_TOKEN",),
    "ms_token": ("MS_TOKEN",),
    "access_key": ("ACCESS_KEY",),
    "secret_key": ("SECRET_KEY",),
}
SIGNED_QUERY = (
    "the query of its address"  # as the name of a credential: what stands behind the ? of a signed address
)


@dataclass(frozen=True, slots=True)
class DownloadFolders:
    """Where downloads may go: `home`, where relative paths begin, and `others`; all with everything below them."""

    home: Path
    others: tuple[Path, ...] = ()

    def resolve_folder(self, text: str) -> Path:
        """Give the folder that a caller names, symbolic links followed (blocks).

        Raises  Invalid: it is no path · Forbidden: it is outside
        """
        if not text or "\0" in text or not text.isprintable():
            raise Invalid(
                "`output_dir` must be the path of a folder.", param="output_dir", code="invalid_value"
            )
        try:
            path = (self.home / text).resolve()
            roots = [root.resolve() for root in (self.home, *self.others)]
        except (OSError, RuntimeError) as exc:
            raise Invalid(
                f"`output_dir` cannot be used: {exc}.", param="output_dir", code="invalid_value"
            ) from None
        if not any(path == root or root in path.parents for root in roots):
            raise Forbidden(
                f"{text} is outside the folders for downloads ({', '.join(map(str, (self.home, *self.others)))}). Name one below "
                "them, or add it to DOWNLOAD_ALLOWED_DIRS.",
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
    """Read what a caller asks for (blocks: paths are looked up).

    Takes   source, output_dir: both are needed; config: an object, the same as JSON text, or None; max_workers: None = 8
    Raises  Invalid · Forbidden: output_dir is outside the allowed folders
    Source  system E, body of /v1/download_model
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
    """Give `max_workers`; None = as usual.

    Raises  Invalid
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
    """Give a source with its scheme; a bare `ns/repo` is Hugging Face's.

    Raises  Invalid: it is none, or has a user or password in it (which is not repeated)
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
            "`source` has a user or a password in it. Leave them out, and give credentials in `config`.",
            param="source",
            code="credentials_in_source",
        )
    return whole.rstrip("/") or whole


def default_folder(source: str) -> str:
    """Give the folder, relative to that for downloads, where a source goes that is given none: `hf/ns/repo`."""
    scheme, _, rest = redact_source(source).partition("://")
    return "/".join([scheme, *(piece for piece in rest.split("/") if piece not in {"", ".", ".."})])


def parse_config(value: Any) -> dict[str, str]:
    """Give `config` as texts by name, whether it came as an object or as JSON text; null and empty values are left out.

    Raises  Invalid; it never repeats a value
    """
    if isinstance(value, str):
        try:
            value = jsons.loads(value) if value.strip() else {}
        except jsons.InvalidJson:  # its words may hold a piece of the text
            raise Invalid("`config` is no valid JSON.", param="config", code="invalid_json") from None
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise Invalid("`config` must be an object, or one as JSON text.", param="config", code="invalid_type")
    found = {
        str(key): _config_text(str(key), one) for key, one in value.items() if one is not None and one != ""
    }
    for key in ("hf_endpoint", "endpoint", "ms_endpoint"):
        if _has_user_info(found.get(key, "")):
            raise Invalid(
                f"`config.{key}` has a user or a password in it; give credentials under their own names.",
                param=f"config.{key}",
                code="credentials_in_address",
            )
    return found


def _config_text(key: str, value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str) or (isinstance(value, (int, float)) and math.isfinite(value)):
        return str(value)
    if (
        isinstance(value, (list, tuple))
        and key in {"include", "exclude"}
        and all(isinstance(one, str) for one in value)
    ):
        return ",".join(value)
    raise Invalid(
        f"`config.{key[:64]}` must be a text, a number or a truth value.",
        param=f"config.{key[:64]}",
        code="invalid_type",
    )


def _has_user_info(address: str) -> bool:
    return "@" in address.partition("://")[2].partition("/")[0].partition("?")[0]


# ---- what may be seen of it


def public_config(config: Mapping[str, str]) -> dict[str, str]:
    """Give what may be shown and kept of `config`."""
    return {key: value for key, value in config.items() if key in PUBLIC_KEYS}


def credential_names(request: DownloadRequest) -> tuple[str, ...]:
    """Name the credentials that came with a wish, not their values."""
    signed = (SIGNED_QUERY,) if redact_source(request.source) != request.source else ()
    return tuple(key for key in request.config if key not in PUBLIC_KEYS) + signed


def secret_texts(request: DownloadRequest) -> list[str]:
    """Give every text of a wish that must be seen nowhere, the longest first."""
    parts = urlsplit(request.source)
    texts = [value for key, value in request.config.items() if key not in PUBLIC_KEYS]
    texts += [parts.query, parts.fragment, *(value for _, value in parse_qsl(parts.query))]
    return sorted({text for text in texts if len(text) >= MIN_SECRET_CHARS}, key=len, reverse=True)


def find_missing_credentials(needs: tuple[str, ...], has_variable: Callable[[str], bool]) -> list[str]:
    """Say which credentials of an earlier run are not in the environment, with the variables that would have them."""

    def told(name: str) -> str:
        variables = VARIABLES_OF.get(name, ())
        return f"{name} ({' or '.join(variables)})" if variables else name

    return [
        told(name)
        for name in needs
        if not any(has_variable(variable) for variable in VARIABLES_OF.get(name, ()))
    ]
