"""File names from sources: which may be written below the output folder, and which are selected."""

import os
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path

from appliance.base.errors import Forbidden, Invalid, NotFound
from appliance.downloads.sources.contract import RemoteFile

RESERVED = {".lock", ".download", ".download.json"}  # our own, in the output folder
MAX_PART_BYTES = 255  # of one part of a path, on nearly every file system


def find_unsafe_reason(path: str) -> str:
    """Say why a name may not be used; "" = it may.

    1. it is empty, or has control characters
    2. Windows' separators or drives
    3. it is absolute
    4. a part is empty, `.` or `..`
    5. it is reserved for our own files
    6. not Unicode, or too long
    """
    parts = path.split("/")
    if not path or any(ord(letter) < 32 or ord(letter) == 127 for letter in path):  # 1
        return "it contains a control character" if path else "it is empty"
    if "\\" in path or (len(path) > 1 and path[1] == ":" and path[0].isalpha()):  # 2
        return "it contains a backslash or a drive letter"
    if path.startswith("/"):  # 3
        return "it is an absolute path"
    if any(part in {"", ".", ".."} for part in parts):  # 4
        return "it has a part that is empty, . or .."
    if parts[0] in RESERVED:  # 5
        return "the name is reserved for the download's own files"
    try:
        is_long = any(len(part.encode()) > MAX_PART_BYTES for part in parts)
    except UnicodeEncodeError:
        return "it is not Unicode"
    return f"a part of it is longer than {MAX_PART_BYTES} bytes" if is_long else ""  # 6


def check_names(files: Iterable[RemoteFile]) -> None:
    """Check that all files can be written.

    Raises:
        Invalid: A name cannot be used, comes twice, or is the folder of another one.
    """
    seen: set[str] = set()
    for file in files:
        if why := find_unsafe_reason(file.path):
            raise Invalid(
                f"The source has a file {file.path[:200]!r} that cannot be written: {why}.",
                code="unsafe_name",
            )
        if file.path in seen:
            raise Invalid(f"The source has the file {file.path!r} twice.", code="unsafe_name")
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
    """Select files by `include` and `exclude`: shell patterns, whose `*` stands for any text, also with `/`.

    Args:
        files: All files of the source.
        config: May have `include` and `exclude`, comma lists.
        source: For the error.

    Raises:
        NotFound: There is no file, or none is selected.
    """
    every = list(files)
    include, exclude = _parse_patterns(config.get("include", "")), _parse_patterns(config.get("exclude", ""))
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


def _parse_patterns(text: str) -> list[str]:
    pieces = [piece.strip() for piece in text.split(",") if piece.strip()]
    return [f"{piece}*" if piece.endswith("/") else piece for piece in pieces]


def _matches(path: str, patterns: list[str]) -> bool:
    return any(fnmatchcase(path, pattern) for pattern in patterns)


def resolve_target(folder: Path, path: str) -> Path:
    """Return where a file is written.

    Raises:
        Forbidden: A link in the output folder leads out of it.
    """
    target, root = folder / path, Path(os.path.realpath(folder))
    if not Path(os.path.realpath(target.parent)).is_relative_to(root):
        raise Forbidden(
            f"{path} would be written outside of {folder}: a link there leads out of it.",
            code="link_leads_out",
        )
    return target
