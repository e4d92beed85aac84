"""The configuration file: JSON or YAML, read once, bounded, and told apart from other forms of files.

YAML is read as YAML 1.2 has it: only `true` and `false` are switches (`on`, `yes` and `no` stay words), dates
and times of day stay text, and a key that is there twice is an error.
"""

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from appliance.base import jsons
from appliance.base.files import open_to_read
from appliance.base.settings import Problem

MAX_BYTES = 4 * 1024 * 1024
MAX_NODES = 200_000  # values; a few lines of YAML can stand for millions by its references
MAX_DEPTH = 50
YAML_ENDINGS = {".yaml", ".yml"}
ALLOWED = "a JSON or YAML file with `settings`, `models`, `backends` or `adapters`"
Signature = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class ConfigFile:
    """The file as it was read.

    Attributes:
        path: None = there is none.
        sections: Its top-level keys.
        problem: Why it cannot be used; "" = it can.
        is_open: Whether every user of the machine may read it.
        signature: Of the file that was read; None = it could not be opened.
    """

    path: Path | None = None
    sections: Mapping[str, Any] = field(default_factory=dict, repr=False)
    problem: str = ""
    is_open: bool = False
    signature: Signature | None = None

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
    return ConfigFile(path, sections, "", is_open, signature)


def signature_of(state: os.stat_result) -> Signature:
    """Return what changes whenever a file is written, replaced, or another one is linked to in its place."""
    return state.st_dev, state.st_ino, state.st_mtime_ns, state.st_size


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
    is_json = ending == ".json" or (ending not in YAML_ENDINGS and data.lstrip()[:1] in {b"{", b"["})
    value = _parse_json(data) if is_json else _parse_yaml(data)
    if not isinstance(value, dict):
        raise ValueError(f"The file must hold one {'JSON object' if is_json else 'YAML mapping'}.")
    _check_size(value)
    return value


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
