"""The machine-id: kept if it is valid, else restored from the state folder, else made and kept there.

With a read-only root the state folder alone holds it.

Source:
    machine-id(5); for the order, see docs/compatibility.md.
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
    """The id and where it came from.

    Attributes:
        value: 32 lower-case hex digits.
        source: kept, restored or made.
        is_kept: It will be the same after a restart.
        detail: A sentence for people.
        failure: Why it could not be kept; None = it is kept, or the reason is unknown.
    """

    value: str
    source: Literal["kept", "restored", "made"]
    is_kept: bool
    detail: str
    failure: OSError | None = None


def read_machine_id(path: Path) -> str:
    """Return the machine-id in `path`; "" = none, not 32 lower-case hex digits, or all zero."""
    try:
        text = path.read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError):
        return ""
    return text.strip() if _VALID.fullmatch(text) and text.strip("0\n") else ""


def ensure_machine_id(
    machine_id_path: Path, state_dir: Path, *, dbus_path: Path | None = None, is_container: bool | None = None
) -> MachineId:
    """Make sure that there is a machine-id which outlasts restarts.

    1. a valid one where the system looks, on a real machine   → keep it; a machine's own file is not changed
    2. a valid one there, in a container, none or same kept    → keep it
    3. one in the state folder                                 → restore it: the container is a new one
    4. none anywhere                                           → make one

    Args:
        machine_id_path: Where the system looks.
        state_dir: The folder that outlasts restarts.
        dbus_path: The system's second place; None = the usual one, if `machine_id_path` is the usual one.
        is_container: Whether the system's files belong to a container; None = find out.
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
    failure = None
    if value != kept:
        value, failure = _keep(state_dir / "machine-id", value, instead_of=kept)
    is_kept = read_machine_id(state_dir / "machine-id") == value
    wrote = [
        str(path)
        for path in (machine_id_path, dbus_path)
        if path is not None and _install(path, value, may_replace=is_ours)
    ]
    where = ", ".join([*wrote, *([str(state_dir / "machine-id")] if is_kept else [])]) or "memory only"
    return MachineId(value, source, is_kept, f"machine-id {source} ({where})", failure)


def is_in_container() -> bool:
    """Say whether a container engine made this root file system."""
    return any(Path(path).exists() for path in ("/.dockerenv", "/run/.containerenv")) or bool(
        os.environ.get("KUBERNETES_SERVICE_HOST")
    )


def _install(path: Path, value: str, *, may_replace: bool) -> bool:
    """Write `value` where the system looks, unless a machine has a valid one; say whether it is there."""
    present = read_machine_id(path)
    if present == value:
        return True
    return (may_replace or not present) and path.parent.is_dir() and _write(path, value)


def _keep(path: Path, value: str, *, instead_of: str) -> tuple[str, OSError | None]:
    """Write `value` into the state folder, unless another process was faster.

    Only the id that the decision was based on (`instead_of`, "" = none) is replaced: any other is newer.

    Returns:
        (what is there then, why it could not be written)
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if present := read_machine_id(path):
            return (value if present == instead_of and _write(path, value) else present), None
        with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=".machine-id.", delete=False) as file:
            file.write(value + "\n")
        os.chmod(file.name, 0o644)
        try:
            os.link(file.name, path)  # unlike a rename, a link does not replace the winner's file
        except FileExistsError:
            if not read_machine_id(path):  # what is there is not a machine-id
                os.replace(file.name, path)
                return value, None
            return read_machine_id(path), None
        finally:
            Path(file.name).unlink(missing_ok=True)
    except OSError as exc:
        return value, exc
    return value, None


def _write(path: Path, value: str) -> bool:
    """Write in place (the file may be a bind mount, which cannot be replaced); False = not allowed."""
    try:
        path.write_text(value + "\n", encoding="ascii")
    except OSError:
        return False
    return True
