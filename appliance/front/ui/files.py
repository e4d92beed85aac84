"""The files of the web UI, read once and kept in memory with their compressed form."""

import gzip
import hashlib
from dataclasses import dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Final

INDEX: Final = "index.html"
TYPES: Final = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
}


@dataclass(frozen=True, slots=True)
class UiFile:
    """One file.

    Attributes:
        packed: The same, compressed by gzip.
        etag: Of its bytes, in quotation marks.
    """

    body: bytes
    packed: bytes
    content_type: str
    etag: str


class UiFiles:
    """All files; `load` reads them (blocks), the first time it is called.

    Args:
        folder: Where they are; None = in the package.
    """

    def __init__(self, folder: Traversable | None = None) -> None:
        self._folder = folder
        self._files: dict[str, UiFile] = {}

    @property
    def is_loaded(self) -> bool:
        """Whether they were read."""
        return bool(self._files)

    def load(self) -> None:
        """Read all files."""
        folder = self._folder or files("appliance.front.ui").joinpath("web")
        found: dict[str, UiFile] = {}
        _read(folder, "", found)
        self._files = found

    def get(self, path: str) -> UiFile | None:
        """Return a file by its path below the folder; None = there is no such file."""
        return self._files.get(path)


def _read(folder: Traversable, prefix: str, found: dict[str, UiFile]) -> None:
    for entry in folder.iterdir():
        if entry.is_dir():
            _read(entry, f"{prefix}{entry.name}/", found)
            continue
        content_type = TYPES.get("." + entry.name.rpartition(".")[2])
        if content_type is not None:
            body = entry.read_bytes()
            etag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
            found[prefix + entry.name] = UiFile(body, gzip.compress(body, 9, mtime=0), content_type, etag)
