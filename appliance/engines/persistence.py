"""Writes changes that must survive a restart to a file of the state folder."""

from pathlib import Path
from typing import Any

from appliance.base import jsons
from appliance.base.errors import Conflict
from appliance.base.files import write_atomic


def persist(path: Path, value: Any) -> None:
    """Write a JSON value, whole or not at all, readable by its owner only (blocks).

    Raises:
        Conflict: The folder cannot be written.
    """
    try:
        write_atomic(path, jsons.dumps(value))
    except OSError as exc:
        raise Conflict(
            f"The change is in force, but will be lost at a restart: {exc.strerror or exc} ({path.parent}).",
            code="not_persisted",
        ) from None
