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


def ensure_machine_id(
    machine_id_path: Path, state_dir: Path, *, dbus_path: Path | None = None, is_container: bool | None = None
) -> MachineId:
    """Make sure that there is a machine-id which lasts.

    Takes   machine_id_path: where the system looks; state_dir: the folder that lasts; dbus_path: its second place (None = the usual
            one, beside the usual first); is_container: whether the system's files are a container's own (None = look)
    Gives   MachineId
            1. valid where the system looks, on a machine of its own      → keep it; a machine's own files are never replaced
            2. valid there, in a container, none or the same kept         → keep it
            3. one in the state folder                                    → restore that one: the container was made anew
            4. none anywhere                                              → make one
    """
    if dbus_path is None and machine_id_path == Path("/etc/machine-id"):
        dbus_path = DBUS_PATH
    is_ours = is_in_container() if is_container is None else is_container
    system, kept = read_machine_id(machine_id_path), read_machine_id(state_dir / "machine-id")
    source: Literal["kept", "restored", "made"]
    if system and (not is_ours or kept in {"", system}):  # 1, 2
        value, source = system, "kept"
    elif kept:  # 3
        value, source = kept, "restored"
    else:  # 4
        value, source = uuid.uuid4().hex, "made"
    value = _keep(state_dir / "machine-id", value, instead_of=kept) if value != kept else value
    is_kept = read_machine_id(state_dir / "machine-id") == value
    wrote = [
        str(path)
        for path in (machine_id_path, dbus_path)
        if path is not None and _settle(path, value, may_replace=is_ours)
    ]
    where = ", ".join([*wrote, *([str(state_dir / "machine-id")] if is_kept else [])]) or "memory only"
    return MachineId(value, source, is_kept, f"machine-id {source} ({where})")


def is_in_container() -> bool:
    """Whether an engine made this root file system."""
    return any(Path(path).exists() for path in ("/.dockerenv", "/run/.containerenv")) or bool(
        os.environ.get("KUBERNETES_SERVICE_HOST")
    )


def _settle(path: Path, value: str, *, may_replace: bool) -> bool:
    """Put `value` where the system looks; a valid one of a machine's own stays. Give whether it stands there."""
    present = read_machine_id(path)
    if present == value:
        return True
    return (may_replace or not present) and path.parent.is_dir() and _write(path, value)


def _keep(path: Path, value: str, *, instead_of: str) -> str:
    """Put `value` into the state folder unless another process was faster; give what stands there.

    Only the id that the decision was made with (`instead_of`, "" = none) is replaced: another one was put there since.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if present := read_machine_id(path):
            return value if present == instead_of and _write(path, value) else present
        with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=".machine-id.", delete=False) as file:
            file.write(value + "\n")
        os.chmod(file.name, 0o644)
        try:
            os.link(file.name, path)  # unlike a rename, a link does not replace the winner's
        except FileExistsError:
            if not read_machine_id(path):  # what stands there is no machine-id
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
