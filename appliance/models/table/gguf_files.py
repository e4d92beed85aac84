"""The files of one GGUF model: all its parts, what is missing of them, and whether they are whole."""

import re
import stat
from pathlib import Path

from appliance.models.table.gguf import GgufHeader, InvalidGguf, read_tensors

MAX_PARTS = 4096
SHOWN_PARTS = 5
PART = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<ending>\.gguf)", re.IGNORECASE)


def _part_of(path: Path) -> re.Match[str] | None:
    """Match the name of a part; None = it is none, or its numbers cannot be those of a part."""
    found = PART.fullmatch(path.name)
    if found is None or not 1 <= int(found["number"]) <= int(found["count"]) <= MAX_PARTS:
        return None
    return found


def gguf_parts(path: Path) -> list[Path]:
    """Return all files of a model: itself, or (`-00001-of-00003`) all parts in their order, there or not."""
    found = _part_of(path)
    if not found:
        return [path]
    return [
        path.with_name(f"{found['stem']}-{number:05}-of-{found['count']}{found['ending']}")
        for number in range(1, int(found["count"]) + 1)
    ]


def gguf_stem(path: Path) -> str:
    """Return a file's name without its ending, and without `-00001-of-00003`."""
    found = _part_of(path)
    return found["stem"] if found else path.stem


def is_regular(path: Path) -> bool:
    """Whether there is a regular file that we may ask for: no folder, pipe, device or loop of links."""
    return regular_size_bytes(path) is not None


def regular_size_bytes(path: Path) -> int | None:
    """Return a file's size; None = it is missing, out of reach, or no regular file."""
    try:
        found = path.stat()
    except (OSError, ValueError):  # ValueError: the name cannot be that of a file
        return None
    return found.st_size if stat.S_ISREG(found.st_mode) else None


def missing_parts(path: Path) -> str:
    """Name the parts of a model that are missing, the first few; "" = all are there."""
    missing = [part.name for part in gguf_parts(path) if not is_regular(part)]
    more = f" and {len(missing) - SHOWN_PARTS} more" if len(missing) > SHOWN_PARTS else ""
    return ", ".join(missing[:SHOWN_PARTS]) + more


def gguf_size_bytes(path: Path) -> int:
    """Return the size of a model's files together; missing ones count nothing."""
    return sum(regular_size_bytes(part) or 0 for part in gguf_parts(path))


def check_split(path: Path, header: GgufHeader) -> None:
    """Refuse a part of a model whose name is not that of the part that its header says it is.

    Raises:
        InvalidGguf: llama-server would not find the other parts.
    """
    count, number = header.values.get("split.count"), header.values.get("split.no")
    if not isinstance(count, int) or count <= 1:
        return
    found, shown = _part_of(path), number + 1 if isinstance(number, int) else 0
    if found is None or (int(found["count"]), int(found["number"])) != (count, shown):
        raise InvalidGguf(
            f"it says that it is part {shown} of {count}, but it is not named so: name the parts "
            "NAME-00001-of-00002.gguf, and the model by its first part"
        )


def check_whole(path: Path) -> None:
    """Check that the parts of a model have all the bytes that their headers promise.

    Raises:
        InvalidGguf: One is incomplete, or its header is damaged.
        OSError: One cannot be read.
    """
    for part in gguf_parts(path):
        size, end = regular_size_bytes(part), read_tensors(part).end_bytes
        if size is not None and end > size:
            name = "it" if part == path else part.name
            raise InvalidGguf(
                f"{name} has {size} of {end} bytes: {name} is incomplete, or still being written"
            )
