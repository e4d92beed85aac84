"""The simulated GPU: its identity, generated once a run, and the mark in every name. Standard library only.

Pollers start the nvidia-smi shim, which loads this file, every second: nothing here may import anything
heavy. Every name ends in ` (simulated)`; no setting removes that.
"""

import json
import os
import random
import stat
import tempfile
import uuid
from collections.abc import Mapping
from dataclasses import dataclass

MARK = " (simulated)"
DEFAULTS = {
    "GPU_SPOOF_NAME": "NVIDIA GeForce RTX 4090",
    "GPU_SPOOF_DRIVER": "535.00",
    "GPU_SPOOF_MEMORY_TOTAL": "24576",
    "GPU_SPOOF_STATE_DIR": "/var/run/gpu-spoof",
    "GPU_SIM_COUNT": "1",
    "STATE_DIR": "/var/lib/appliance",
}


@dataclass(frozen=True)
class SimulatedGpu:
    """One simulated GPU; memory in MiB, bus id `00000000:BB:DD.F`."""

    index: int
    name: str
    uuid: str
    bus_id: str
    memory_mib: int
    driver: str


def add_mark(name: str) -> str:
    """Return `name` with the mark at its end, exactly once."""
    plain = name.strip()
    while plain.lower().endswith(MARK.strip()):
        plain = plain[: -len(MARK.strip())].rstrip()
    return (plain or "GPU") + MARK


def _setting(environ: Mapping[str, str], name: str) -> str:
    return (environ.get(name) or "").strip() or DEFAULTS.get(name, "")


def parse_memory_mib(text: str) -> int:
    """Parse `24576`, `24576 MiB` or `24 GiB`; anything else is the default (`check` refuses it before)."""
    number = "".join(c for c in text if c.isdigit())
    if not number:
        return int(DEFAULTS["GPU_SPOOF_MEMORY_TOTAL"])
    return int(number) * (1024 if "g" in text.lower() else 1)


def list_gpus(environ: Mapping[str, str]) -> list[SimulatedGpu]:
    """Return this run's simulated GPUs; identities are generated once, until the state is deleted."""
    try:
        count = min(max(int(_setting(environ, "GPU_SIM_COUNT")), 1), 16)
    except ValueError:
        count = 1
    identities = load_identities(environ, count)
    rows = []
    for index in range(count):
        own_uuid, bus_id = identities[index]
        if index == 0:
            own_uuid = (environ.get("GPU_SPOOF_UUID") or "").strip() or own_uuid
            bus_id = (environ.get("GPU_SPOOF_PCI_BUS_ID") or "").strip().upper() or bus_id
        rows.append(
            SimulatedGpu(
                index,
                add_mark(_setting(environ, "GPU_SPOOF_NAME")),
                own_uuid,
                bus_id,
                parse_memory_mib(_setting(environ, "GPU_SPOOF_MEMORY_TOTAL")),
                _setting(environ, "GPU_SPOOF_DRIVER"),
            )
        )
    return rows


def new_identities(count: int) -> list[tuple[str, str]]:
    """Generate identities: `GPU-` and an upper-case UUID v4, and a bus id of its own for each."""
    buses = random.SystemRandom().sample(range(1, 0xFF), count)
    return [("GPU-" + str(uuid.uuid4()).upper(), f"00000000:{bus:02X}:00.0") for bus in buses]


def state_dirs(environ: Mapping[str, str]) -> list[str]:
    """List the folders for the identity: GPU_SPOOF_STATE_DIR, the state folder, one of this user."""
    return [
        _setting(environ, "GPU_SPOOF_STATE_DIR"),
        os.path.join(_setting(environ, "STATE_DIR"), "gpu-spoof"),
        os.path.join(tempfile.gettempdir(), f"gpu-spoof-{os.getuid()}"),
    ]


def load_identities(environ: Mapping[str, str], count: int) -> list[tuple[str, str]]:
    """Return the saved identities, or generate them; two processes that ask at once get the same.

    1. a folder has them             → those
    2. a folder is writable          → generated there; the first writer wins
    3. no folder is writable         → generated for this process alone
    """
    folders = state_dirs(environ)
    for folder in folders:  # 1
        found = _read(folder, count)
        if found:
            return found
    for folder in folders:  # 2
        try:
            os.makedirs(folder, mode=0o755, exist_ok=True)
            return _make(folder, count)
        except OSError:
            continue
    return new_identities(count)  # 3


def _read(folder: str, count: int) -> list[tuple[str, str]]:
    path = os.path.join(folder, "identity.json")
    try:
        owner = os.stat(path)
        if (
            owner.st_uid not in {0, os.getuid(), os.stat(folder).st_uid}
            or stat.S_IMODE(owner.st_mode) & 0o022
        ):
            return []  # another user could have written it
        with open(path, encoding="ascii") as file:
            rows = json.load(file)["gpus"]
        found = [(str(row["uuid"]), str(row["bus_id"])) for row in rows]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return found if len(found) >= count else []


def _make(folder: str, count: int) -> list[tuple[str, str]]:
    made = new_identities(max(count, 16))  # GPU_SIM_COUNT may grow within a run: the first ones stay the same
    content = {"note": "made up: a simulated GPU", "gpus": [{"uuid": u, "bus_id": b} for u, b in made]}
    text = json.dumps(content) + "\n"  # noqa: TID251 - standard library only
    handle, name = tempfile.mkstemp(dir=folder, prefix=".identity.")
    path = os.path.join(folder, "identity.json")
    try:
        with os.fdopen(handle, "w", encoding="ascii") as file:
            file.write(text)
        os.chmod(name, 0o644)
        try:
            os.link(name, path)  # fails if another process was first
        except FileExistsError:
            found = _read(folder, count)
            if found:
                return found
            os.replace(name, path)  # the file there is damaged
            return made
    finally:
        try:
            os.unlink(name)
        except OSError:
            pass
    return made


# ---- what `prepare` leaves for shims whose environment does not name the mode


def write_shim_state(environ: Mapping[str, str], mode: str) -> str:
    """Save mode and settings for shims whose callers have another environment; return the path, "" = none."""
    kept = {k: environ[k] for k in [*DEFAULTS, "GPU_SPOOF_UUID", "GPU_SPOOF_PCI_BUS_ID"] if environ.get(k)}
    text = json.dumps({"mode": mode, "environ": kept})  # noqa: TID251 - standard library only
    for folder in state_dirs(environ):
        try:
            os.makedirs(folder, mode=0o755, exist_ok=True)
            path = os.path.join(folder, "mode.json")
            handle, name = tempfile.mkstemp(dir=folder, prefix=".mode.")
            with os.fdopen(handle, "w", encoding="ascii") as file:
                file.write(text + "\n")
            os.chmod(name, 0o644)
            os.replace(name, path)
        except OSError:
            continue
        return path
    return ""


def read_shim_state(environ: Mapping[str, str]) -> dict[str, object]:
    """Return what write_shim_state saved, or {}."""
    for folder in state_dirs(environ):
        try:
            with open(os.path.join(folder, "mode.json"), encoding="ascii") as file:
                state = json.load(file)
        except (OSError, ValueError):
            continue
        if isinstance(state, dict):
            return state
    return {}
