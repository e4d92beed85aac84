"""Which names, paths and sources of adapters are allowed.

They come from clients, and engines read whatever path they are given.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from appliance.base.errors import Forbidden, Invalid
from appliance.downloads.contract import redact_source

MAX_NAME_CHARS = 128
MAX_PATH_CHARS = 4096
FILE_ENDINGS = (".gguf", ".bin")


def check_name(name: str) -> str:
    """Return the name of an adapter if it is allowed.

    A comma would end the name for llama-server.

    Raises:
        Invalid: Empty, too long, not printable, or with a comma, a space at an end, or parts of a path.
    """
    is_plain = 1 <= len(name) <= MAX_NAME_CHARS and name.isprintable() and name == name.strip()
    has_path_parts = "\\" in name or any(part in {"", ".", ".."} for part in name.split("/"))
    if not is_plain or "," in name or has_path_parts:
        raise Invalid(
            f"Invalid `lora_name` {name[:MAX_NAME_CHARS]!r}: 1-{MAX_NAME_CHARS} printable characters; "
            "no comma or '\\', no space or '/' at an end, no '.' or '..' between '/'.",
            param="lora_name",
            code="invalid_name",
        )
    return name


def folder_name(name: str) -> str:
    """Return the name of the folder that an adapter is downloaded into."""
    return name.replace("/", "--")


def check_path(path: str, allowed: Sequence[Path], *, param: str = "lora_path") -> str:
    """Return a path as the engines get it: absolute and normalised.

    It need not exist here: an engine may see other folders.

    Args:
        path: As the client gave it.
        allowed: The folders inside which it must lie.
        param: The client's parameter, for the error.

    Raises:
        Invalid: It is not absolute, or has `..`, a comma or characters that are not printable.
        Forbidden: It lies, or leads by a link, outside the allowed folders.
    """
    is_absolute = path.startswith("/") and ".." not in path.split("/")
    if not is_absolute or not path.isprintable() or "," in path or len(path) > MAX_PATH_CHARS:
        raise Invalid(
            f"Invalid `{param}` {path[:200]!r}: an absolute path of up to {MAX_PATH_CHARS} printable "
            "characters, without `..` and comma.",
            param=param,
            code="invalid_path",
        )
    normal = Path(os.path.normpath(path))
    if any(_is_inside(normal, folder) for folder in allowed):
        return str(normal)
    raise Forbidden(
        f"{str(normal)[:200]!r} is outside the folders for adapters (LORA_ALLOWED_DIRS): "
        f"{', '.join(map(str, allowed)) or 'none'}.",
        param=param,
        code="path_not_allowed",
    )


def _is_inside(path: Path, folder: Path) -> bool:
    """Whether a path lies inside a folder, and still does once links are followed."""
    if path == folder or not path.is_relative_to(folder):
        return False
    try:
        return path.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError):  # a loop of links
        return False


def check_source(source: str) -> str:
    """Return a source as it may be stored and shown: the query of a signed address holds its key.

    Raises:
        Invalid: It contains a user name or a password.
    """
    parts = urlsplit(source)
    if parts.username or parts.password:
        raise Invalid(
            "`source` must not contain credentials; pass them in `config`.",
            param="source",
            code="invalid_source",
        )
    return redact_source(source)


def find_adapter_file(path: Path) -> Path:
    """Return the file that llama-server loads: `path` itself, or the only GGUF file in that folder (blocks).

    Raises:
        Invalid: There is none, or there are several.
    """
    if path.suffix.lower() in FILE_ENDINGS and not path.is_dir():
        if not path.is_file():
            raise _not_found(f"File not found: {path}.")
        return path
    if not path.is_dir():
        raise _not_found(
            f"Folder not found: {path}. Set `lora_path` to the adapter's .gguf file or its folder."
        )
    found = sorted(one for one in path.rglob("*") if one.suffix.lower() == ".gguf" and one.is_file())
    if not found:
        raise _not_found(f"There is no .gguf file in {path}; llama-server loads no other format.")
    if len(found) > 1:
        raise _not_found(f"There are several .gguf files in {path}; set `lora_path` to one of them.")
    return found[0]


def _not_found(message: str) -> Invalid:
    return Invalid(message, param="lora_path", code="adapter_not_found")
