"""Names that come from elsewhere: which of them may become a file below the output folder, and which of the files are wanted."""

import os
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path

from appliance.base.errors import Forbidden, Invalid, NotFound
from appliance.downloads.sources.contract import RemoteFile

RESERVED = {".lock", ".download", ".download.json"}  # our own, in the output folder
MOST_BYTES = 255  # of one part of a path, on nearly every file system


def find_unsafe_reason(path: str) -> str:
    """Say why a name may not be used; "" = it may.

    1. nothing, or characters that are none   2. Windows' separators and drives   3. absolute   4. parts that go up, or nowhere
    5. our own files   6. too long
    """
    parts = path.split("/")
    if not path or any(ord(letter) < 32 or ord(letter) == 127 for letter in path):  # 1
        return "it holds a control character" if path else "it is empty"
    if "\\" in path or (len(path) > 1 and path[1] == ":" and path[0].isalpha()):  # 2
        return "it has a backslash or a drive letter"
    if path.startswith("/"):  # 3
        return "it is an absolute path"
    if any(part in {"", ".", ".."} for part in parts):  # 4
        return "it has a part that is empty, . or .."
    if parts[0] in RESERVED:  # 5
        return "that name is used for the download's own files"
    try:
        is_long = any(len(part.encode()) > MOST_BYTES for part in parts)
    except UnicodeEncodeError:
        return "it is not Unicode"
    return f"a part of it is longer than {MOST_BYTES} bytes" if is_long else ""  # 6


def check_names(files: Iterable[RemoteFile]) -> None:
    """Raises  Invalid: a name that no file can have here, one that comes twice, or one that is a folder of another"""
    seen: set[str] = set()
    for file in files:
        if why := find_unsafe_reason(file.path):
            raise Invalid(
                f"The source has a file named {file.path[:200]!r}, which cannot be written: {why}.",
                code="unsafe_name",
            )
        if file.path in seen:
            raise Invalid(f"The source has {file.path!r} twice.", code="unsafe_name")
        seen.add(file.path)
    for path in seen:
        above = path
        while above := above.rpartition("/")[0]:
            if above in seen:
                raise Invalid(
                    f"The source has {above!r} as a file and as a folder; both cannot be written.",
                    code="unsafe_name",
                )


def select_files(files: Iterable[RemoteFile], config: Mapping[str, str], *, source: str) -> list[RemoteFile]:
    """Choose the files by `include` and `exclude`, patterns as of a shell, `*` for any text, also over folders.

    Raises  NotFound: nothing is there, or nothing is chosen
    """
    every = list(files)
    include, exclude = _patterns(config.get("include", "")), _patterns(config.get("exclude", ""))
    found = [
        file
        for file in every
        if (not include or _matches(file.path, include)) and not _matches(file.path, exclude)
    ]
    if not every:
        raise NotFound(f"{source} has no files.")
    if not found:
        raise NotFound(
            f"None of the {len(every)} files of {source} matches include={config.get('include', '')!r} "
            f"exclude={config.get('exclude', '')!r}."
        )
    return found


def _patterns(text: str) -> list[str]:
    pieces = [piece.strip() for piece in text.split(",") if piece.strip()]
    return [f"{piece}*" if piece.endswith("/") else piece for piece in pieces]


def _matches(path: str, patterns: list[str]) -> bool:
    return any(fnmatchcase(path, pattern) for pattern in patterns)


def resolve_target(folder: Path, path: str) -> Path:
    """Give where a file is written.

    Raises  Forbidden: a link in the output folder leads out of it
    """
    target, root = folder / path, Path(os.path.realpath(folder))
    if not Path(os.path.realpath(target.parent)).is_relative_to(root):
        raise Forbidden(
            f"{path} would be written outside of {folder}: a link there leads out of it.",
            code="link_leads_out",
        )
    return target
