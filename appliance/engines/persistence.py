"""What was changed at run time and is to survive a restart: how it gets into a file of the state folder."""

from pathlib import Path
from typing import Any

from appliance.base import jsons
from appliance.base.errors import Conflict
from appliance.base.files import write_atomic


def keep(path: Path, value: Any) -> None:
    """Write a JSON value for the owner's eyes alone, whole or not at all (blocks).

    Raises  Conflict: the folder cannot be written
    """
    try:
        write_atomic(path, jsons.dumps(value))
    except OSError as exc:
        raise Conflict(
            f"The change is in force, but cannot be kept for a restart: {exc.strerror or exc} ({path.parent}).",
            code="not_persisted",
        ) from None
