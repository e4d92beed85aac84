"""The configuration file: JSON or YAML, read once, bounded, and told apart from other forms of files.

YAML is read as YAML 1.2 has it: only `true` and `false` are switches (`on`, `yes` and `no` stay words), dates
and times of day stay text, and a key that is there twice is an error.
"""

import json
import os
import re
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from appliance.base import jsons
from appliance.base.files import open_to_read
from appliance.base.settings import Problem

MAX_BYTES = 4 * 1024 * 1024
MAX_NODES = 200_000  # values; a few lines of YAML can stand for millions by its references
MAX_DEPTH = 50
MAX_WARNINGS = 20
YAML_ENDINGS = {".yaml", ".yml"}
ALLOWED = "a JSON or YAML file with `settings`, `models`, `backends` or `adapters`"
Signature = tuple[int, int, int, int]
_UNUSABLE = re.compile("[\0\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class ConfigFile:
    """The file as it was read.

    Attributes:
        path: None = there is none.
        sections: Its top-level keys.
        problem: Why it cannot be used; "" = it can.
        warnings: Sentences about what may not be meant as it stands there.
        is_open: Whether every user of the machine may read it.
        signature: Of the file that was read; None = it could not be opened.
    """

    path: Path | None = None
    sections: Mapping[str, Any] = field(default_factory=dict, repr=False)
    problem: str = ""
    is_open: bool = False
    signature: Signature | None = None
    warnings: tuple[str, ...] = ()

    @property
    def signatures(self) -> dict[Path, Signature | None]:
        """The signature of the file that was read, by its path; empty = there is none."""
        return {} if self.path is None else {self.path: self.signature}

    def problem_at(self, where: str, remedy: str, *, is_fatal: bool = True) -> Problem:
        """Return a problem of the file; `where`: the path of the key, "" = the file as a whole."""
        shown = f"{self.path}: {where}" if where else str(self.path)
        return Problem("CONFIG_PATH", shown, ALLOWED, remedy, is_fatal=is_fatal)


def read_config_file(path: Path | None) -> ConfigFile:
    """Read the file (blocks); what is wrong with it is in its `problem`."""
    if path is None:
        return ConfigFile()
    try:
        with open_to_read(path) as file:
            state = os.fstat(file.fileno())
            data = file.read(MAX_BYTES + 1) if stat.S_ISREG(state.st_mode) else None
    except OSError as exc:
        return ConfigFile(path, problem=f"The file cannot be read: {exc.strerror or exc}.")
    if data is None:
        return ConfigFile(path, problem="The file cannot be read: it is no regular file.")
    signature, is_open = signature_of(state), bool(state.st_mode & stat.S_IROTH)
    try:
        sections = parse_config(data, path.suffix.lower())
    except ValueError as exc:
        return ConfigFile(path, problem=str(exc), is_open=is_open, signature=signature)
    warnings = () if _is_yaml(data, path.suffix.lower()) else tuple(_keys_there_twice(data))
    return ConfigFile(path, sections, "", is_open, signature, warnings)


def signature_of(state: os.stat_result) -> Signature:
    """Return what changes whenever a file is written, replaced, or another one is linked to in its place."""
    return state.st_dev, state.st_ino, state.st_mtime_ns, state.st_size


def find_signature(path: Path) -> Signature | None:
    """Return the signature of a file (blocks); None = it is not there, or cannot be seen."""
    try:
        return signature_of(path.stat())
    except (OSError, ValueError):
        return None


def parse_config(data: bytes, ending: str) -> dict[str, Any]:
    """Parse the file's content.

    1. it ends with .yaml or .yml        → YAML
    2. it ends with .json                → JSON
    3. another ending                    → JSON if it begins with a bracket, else YAML

    Args:
        data: At most MAX_BYTES are allowed, and MAX_YAML_BYTES of YAML.
        ending: Of the file's name, with its dot, in lower case.

    Raises:
        ValueError: A sentence that says what is wrong.
    """
    if len(data) > MAX_BYTES:
        raise ValueError(f"The file is larger than {MAX_BYTES} bytes.")
    is_yaml = _is_yaml(data, ending)
    value = _parse_yaml(data) if is_yaml else _parse_json(data)
    if not isinstance(value, dict):
        raise ValueError(f"The file must hold one {'YAML mapping' if is_yaml else 'JSON object'}.")
    _check_size(value)
    for where in _unusable_texts(value):
        raise ValueError(
            f"The file has at {where} a text with a zero byte, or a half of a surrogate pair, "
            "which no file name, variable or request can have. Remove it."
        )
    return value


def _is_yaml(data: bytes, ending: str) -> bool:
    return ending in YAML_ENDINGS or (ending != ".json" and data.lstrip()[:1] not in {b"{", b"["})


def _keys_there_twice(data: bytes) -> Iterator[str]:
    """Yield a sentence for each key that a JSON object has twice; JSON allows it, and the last one counts."""
    found: dict[str, None] = {}

    def note(pairs: list[tuple[str, Any]]) -> None:
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                found[key] = None
            seen.add(key)

    try:
        json.loads(data, object_pairs_hook=note)
    except (ValueError, RecursionError):  # what only the other reader of JSON takes
        return
    for key in list(found)[:MAX_WARNINGS]:
        shown = key[:80]
        yield f"The key {shown!r} is there twice in one object: only the last one counts. Remove the other."


def _unusable_texts(value: Any, where: str = "") -> Iterator[str]:
    """Yield the paths of texts that cannot be used: with a zero byte, or not to be written as UTF-8."""
    if isinstance(value, dict):
        for key, one in value.items():
            yield from _unusable_texts(key, f"a key of `{where}`" if where else "a key")
            yield from _unusable_texts(one, f"{where}.{key}" if where else str(key))
    elif isinstance(value, list):
        for number, one in enumerate(value):
            yield from _unusable_texts(one, f"{where}.{number}")
    elif isinstance(value, str) and _UNUSABLE.search(value):
        yield where


def _parse_json(data: bytes) -> Any:
    try:
        return jsons.loads(data)
    except jsons.InvalidJson as exc:
        hint = ""
        try:
            if isinstance(_parse_yaml(data), dict) and data.lstrip()[:1] != b"{":
                hint = " This looks like YAML: let the file's name end with .yaml."
        except ValueError:
            pass
        raise ValueError(f"The file is not JSON: {exc}.{hint}") from None


def _parse_yaml(data: bytes) -> Any:
    # Here, since the library takes 7 MB of memory, and most appliances have no such file.
    from appliance.base.config_yaml import parse_yaml

    return parse_yaml(data)


def _check_size(value: Any) -> None:
    """Refuse what would be too much work for every reader.

    Raises:
        ValueError: It is too deep, or has too many values where references are followed.
    """
    left, level = MAX_NODES, [value]
    for _ in range(MAX_DEPTH):
        left -= len(level)
        below: list[Any] = []
        for one in level:
            below += one.values() if isinstance(one, dict) else one if isinstance(one, list) else ()
            if len(below) > left:
                raise ValueError(f"The file stands for more than {MAX_NODES} values.")
        if not below:
            return
        level = below
    raise ValueError(f"The file is nested more than {MAX_DEPTH} levels deep.")
