"""The machine-id: kept if there is a valid one, else restored from the state folder, else made and kept there.

A read-only root is fine: then the state folder alone holds it. Source: machine-id(5); system A, launcher order.
"""

import os
import re
import tempfile
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

_VALID = re.compile(r"[0-9a-f]{32}\n?")
DBUS_PATH = Path("/var/lib/dbus/machine-id")


@dataclass(frozen=True, slots=True)
class MachineId:
    """The id and where it came from. `is_kept`: it will be the same after a restart."""

    value: str
    source: Literal["kept", "restored", "made"]
    is_kept: bool
    detail: str


def read_machine_id(path: Path) -> str:
    """Give the machine-id in `path`, or "" if there is none or it is not 32 lower-case hex digits (or all zero)."""
    try:
        text = path.read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError):
        return ""
    return text.strip() if _VALID.fullmatch(text) and text.strip("0\n") else ""


def ensure_machine_id(machine_id_path: Path, state_dir: Path, *, dbus_path: Path = DBUS_PATH) -> MachineId:
    """Make sure that there is a machine-id which lasts.

    Takes   machine_id_path: where the system looks; state_dir: the folder that lasts
    Gives   MachineId
            1. valid where the system looks, and none or the same kept → keep it
            2. one in the state folder                                 → restore that one: the container was made anew
            3. none anywhere                                           → make one
    """
    system, kept = read_machine_id(machine_id_path), read_machine_id(state_dir / "machine-id")
    source: Literal["kept", "restored", "made"]
    if system and kept in {"", system}:                                         # 1
        value, source = system, "kept"
    elif kept:                                                                  # 2
        value, source = kept, "restored"
    else:                                                                       # 3
        value, source = system or uuid.uuid4().hex, "kept" if system else "made"
    value = _keep(state_dir / "machine-id", value) if value != kept else value
    is_kept = read_machine_id(state_dir / "machine-id") == value
    wrote = [str(path) for path in (machine_id_path, dbus_path)
             if read_machine_id(path) == value or (path.parent.is_dir() and _write(path, value))]
    where = ", ".join([*wrote, *([str(state_dir / "machine-id")] if is_kept else [])]) or "memory only"
    return MachineId(value, source, is_kept, f"machine-id {source} ({where})")


def _keep(path: Path, value: str) -> str:
    """Put `value` into the state folder unless another process was faster; give what stands there."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if read_machine_id(path):
            return value if _write(path, value) else read_machine_id(path)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=".machine-id.", delete=False) as file:
            file.write(value + "\n")
        os.chmod(file.name, 0o644)
        try:
            os.link(file.name, path)        # unlike a rename, a link does not replace the winner's
        except FileExistsError:
            if not read_machine_id(path):   # what stands there is no machine-id
                os.replace(file.name, path)
                return value
            return read_machine_id(path)
        finally:
            Path(file.name).unlink(missing_ok=True)
    except OSError:
        return value
    return value


def _write(path: Path, value: str) -> bool:
    """Write in place (the file may be a bind mount, which cannot be replaced); False where that is not allowed."""
    try:
        path.write_text(value + "\n", encoding="ascii")
    except OSError:
        return False
    return True
