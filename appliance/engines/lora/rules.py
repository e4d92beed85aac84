"""Which names, folders and sources of adapters are allowed: they come from callers, and engines read whatever path they are given."""

import os
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from appliance.base.errors import Forbidden, Invalid
from appliance.downloads.contract import redact_source

MOST_LETTERS = 128
ENDINGS = (".gguf", ".bin")


def check_name(name: str) -> str:
    """Give the name of an adapter back.

    Raises  Invalid: empty, too long, with signs that cannot be seen, a comma (llama-server ends a name there), or steps of a path
    """
    is_plain = (
        1 <= len(name) <= MOST_LETTERS and name.isprintable() and "," not in name and name == name.strip()
    )
    if (
        not is_plain
        or "\\" in name
        or name.startswith("/")
        or any(part in {"", ".", ".."} for part in name.split("/"))
    ):
        raise Invalid(
            f"`lora_name` must have 1 to {MOST_LETTERS} signs that can be seen, no comma, no blank at its ends, and no steps of a path "
            f"(`..`): {name[:MOST_LETTERS]!r} is none.",
            param="lora_name",
            code="invalid_name",
        )
    return name


def folder_name(name: str) -> str:
    """Give the name of the folder that an adapter is downloaded into."""
    return name.replace("/", "--")


def check_path(path: str, allowed: Sequence[Path], *, param: str = "lora_path") -> str:
    """Give a path as the engines are told it: absolute, without detours. It need not exist here: an engine may see other folders.

    Raises  Invalid: it is not absolute, or goes upwards · Forbidden: it is, or leads by a link, outside the allowed folders
    """
    if (
        not path.startswith("/")
        or not path.isprintable()
        or "," in path
        or ".." in path.split("/")
        or len(path) > 4096
    ):
        raise Invalid(
            f"`{param}` must be an absolute path without `..`, commas and signs that cannot be seen: {path[:200]!r} is none.",
            param=param,
            code="invalid_path",
        )
    plain = Path(os.path.normpath(path))
    for folder in allowed:
        try:
            if (
                plain != folder
                and plain.is_relative_to(folder)
                and plain.resolve().is_relative_to(folder.resolve())
            ):
                return str(plain)
        except (OSError, RuntimeError):  # links in a circle
            continue
    raise Forbidden(
        f"{str(plain)[:200]!r} lies outside the folders for adapters, {', '.join(map(str, allowed)) or 'of which there are none'} "
        "(LORA_ALLOWED_DIRS).",
        param=param,
        code="path_not_allowed",
    )


def shown_source(source: str) -> str:
    """Give a source as it may be kept and shown: signed addresses carry their key behind the question mark.

    Raises  Invalid: it has a name or a password in it
    """
    parts = urlsplit(source)
    if parts.username or parts.password:
        raise Invalid(
            "Put no credentials into `source`; give them in `config`.", param="source", code="invalid_source"
        )
    return redact_source(source)


def adapter_file(path: Path) -> Path:
    """Give the file of an adapter for llama-server: itself, or the only one in a folder (blocks).

    Raises  Invalid: there is none, or there are several
    """
    if path.suffix.lower() in ENDINGS and not path.is_dir():
        if not path.is_file():
            raise Invalid(f"There is no file {path}.", param="lora_path", code="adapter_not_found")
        return path
    found = (
        sorted(one for one in path.rglob("*") if one.suffix.lower() == ".gguf" and one.is_file())
        if path.is_dir()
        else []
    )
    if len(found) != 1:
        what = (
            "several .gguf files"
            if found
            else "no .gguf file; llama-server reads no other adapters"
            if path.is_dir()
            else "nothing"
        )
        raise Invalid(
            f"{path} holds {what}: name the file itself.", param="lora_path", code="adapter_not_found"
        )
    return found[0]
