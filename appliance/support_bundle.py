"""The bundle of `appliance support`: texts and objects without secrets, as a tar.gz for its owner."""

import io
import os
import re
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from appliance.base import jsons
from appliance.base.logs import REDACTED, Secrets, is_secret_name
from appliance.base.plain_text import hide_in_addresses, plain_text

MAX_MEMBER_BYTES = 8 << 20  # of one file in the bundle; the beginning of a longer one is left out
MIN_SECRET_CHARS = 6  # shorter texts are too common to be replaced
_ARGUMENT = re.compile(r"(?i)(--?[a-z-]*(?:key|token|secret|password|code)[ =]+)(?!\[secret\])[^\s\"',]+")
_NOT_SECRET = {"", "(hidden)", "none", "true", "false", "default", REDACTED}


class Redactor:
    """Blanks secrets: those that are known, and whatever looks like one."""

    def __init__(self) -> None:
        self._secrets = Secrets()
        self._known: set[str] = set()

    def learn(self, values: Iterable[str]) -> None:
        """Add secrets, and the parts of those that are lists."""
        parts = [part.strip() for value in values for part in (value, *re.split(r"[,\s]+", value))]
        found = {part for part in parts if len(part) >= MIN_SECRET_CHARS and part.lower() not in _NOT_SECRET}
        self._known |= found
        self._secrets.learn(found)

    def text(self, text: str) -> str:
        """Blank the secrets of a text."""
        text = self._secrets.redact(plain_text(text))
        return _ARGUMENT.sub(rf"\1{REDACTED}", hide_in_addresses(text, REDACTED))

    def value(self, value: Any, name: str = "") -> Any:
        """Blank the secrets of a JSON value; `name` is that of the field that it is in."""
        if isinstance(value, Mapping):
            return {self.text(str(key)): self.value(one, str(key)) for key, one in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.value(one, name) for one in value]
        if not isinstance(value, str):
            return value
        if is_secret_name(name) and value.lower() not in _NOT_SECRET and not _is_digest(name, value):
            return REDACTED
        return self.text(value)

    def find_in(self, data: bytes) -> bool:
        """Whether a known secret is in `data` after all."""
        return any(secret.encode() in data for secret in self._known)


def _is_digest(name: str, value: str) -> bool:
    """Whether a value is the digest of a key, as receipts have it."""
    return name == "key" and re.fullmatch(r"[0-9a-f]{12}", value) is not None


class SupportBundle:
    """Collects the files of a bundle.

    Args:
        redactor: Blanks the secrets of all that is added.
        folder: The name of the folder in the bundle.
    """

    def __init__(self, redactor: Redactor, folder: str) -> None:
        self._redactor = redactor
        self._folder = folder
        self._files: dict[str, bytes] = {}
        self.missing: dict[str, str] = {}

    @property
    def names(self) -> list[str]:
        """The files, in order."""
        return sorted(self._files)

    def add_text(self, name: str, text: str) -> None:
        """Add a file of text."""
        data = "\n".join(self._redactor.text(line) for line in text.splitlines()).encode("utf-8", "replace")
        if len(data) > MAX_MEMBER_BYTES:
            data = b"[...]\n" + data[-MAX_MEMBER_BYTES:]
        self._files[name] = data + b"\n"

    def add_object(self, name: str, value: Any) -> None:
        """Add a JSON value."""
        self._files[name] = jsons.dumps_pretty(self._redactor.value(value)).encode() + b"\n"

    def add_missing(self, name: str, reason: str) -> None:
        """Record that a file could not be made, and why."""
        self.missing[name] = self._redactor.text(reason)

    def write(self, path: Path, *, made_at_s: float) -> None:
        """Write the bundle to a new file of mode 0600.

        Raises:
            FileExistsError: There is such a file.
            OSError: It cannot be written.
            ValueError: A secret is in it; nothing is written.
        """
        leaks = [name for name, data in self._files.items() if self._redactor.find_in(data)]
        if leaks:
            raise ValueError(f"a secret is still in {', '.join(leaks)}")
        data = self._archive(int(made_at_s))
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                os.fchmod(file.fileno(), 0o600)
                file.write(data)
        except OSError:
            path.unlink(missing_ok=True)  # half an archive is of no use, and in the way of the next one
            raise

    def _archive(self, made_at_s: int) -> bytes:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
            for name in self.names:
                member = tarfile.TarInfo(f"{self._folder}/{name}")
                member.size, member.mode, member.mtime = len(self._files[name]), 0o600, made_at_s
                archive.addfile(member, io.BytesIO(self._files[name]))
        return buffer.getvalue()
