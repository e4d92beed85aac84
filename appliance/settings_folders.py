"""Checks of the folders that settings name: a plain file in a folder's place, no right to write."""

import os
from collections.abc import Mapping
from pathlib import Path

from appliance.base.settings import Problem

KERNEL_FOLDERS = (
    "/proc",
    "/sys",
    "/sys/fs/cgroup",
    "/dev/pts",
)  # root seems to have the right to write there


def check_folders(folders: Mapping[str, Path | None]) -> list[Problem]:
    """Return what is wrong with folders that are made where they are missing.

    1. something else has its name, or that of a folder above it   → the appliance cannot start
    2. it would be in a file system of the kernel (/proc, /sys)    → the appliance cannot start
    3. it cannot be made or written to                             → a warning: it may be mounted later

    Args:
        folders: Path by variable; None = not set.
    """
    found = ((variable, path, _blocker(path)) for variable, path in folders.items() if path is not None)
    problems = []
    for variable, path, blocker in found:
        allowed = "a folder, or a path where one can be made"
        if not blocker.is_dir():  # 1
            remedy = f"{blocker} is no folder. Name another path, or move it away."
            problems.append(Problem(variable, str(path), allowed, remedy))
        elif blocker.stat().st_dev in _kernel_devices():  # 2
            remedy = f"No file can be made in {blocker}: it shows what the kernel knows. Name another path."
            problems.append(Problem(variable, str(path), allowed, remedy))
        elif not os.access(blocker, os.W_OK | os.X_OK):  # 3
            what = "It cannot be written to" if blocker == path else f"It cannot be made in {blocker}"
            remedy = (
                f"{what} by this user (uid {os.geteuid()}): nothing is kept over a restart, downloads fail. "
                f"Give this user the right, or set {variable} to another folder."
            )
            problems.append(Problem(variable, str(path), allowed, remedy, is_fatal=False))
    return problems


def _blocker(path: Path) -> Path:
    """Return the path itself, or the nearest one above it that exists."""
    while not os.path.lexists(path) and path.parent != path:
        path = path.parent
    return path


def _kernel_devices() -> set[int]:
    """Return the device numbers of the kernel's own file systems; where one is not mounted, it has none."""
    found = set()
    for name in KERNEL_FOLDERS:
        if os.path.ismount(name):
            found.add(os.stat(name).st_dev)
    return found
