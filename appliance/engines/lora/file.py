"""The declared adapters in one file of the state folder: what was asked for is there again after a restart."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from appliance.base import jsons
from appliance.base.logs import get_logger
from appliance.engines.lora.plan import Adapter
from appliance.engines.persistence import keep

log = get_logger("lora")
FILE = "lora-adapters.json"


def read(path: Path) -> dict[str, Adapter]:
    """Read them by name; a file that is missing is empty, one that cannot be read is reported and left as it is."""
    try:
        rows = jsons.loads(path.read_bytes())["adapters"]
        return {adapter.name: adapter for adapter in map(_adapter, rows)}
    except FileNotFoundError:
        return {}
    except (OSError, jsons.InvalidJson, KeyError, TypeError, ValueError) as exc:
        log.error("adapters_unreadable", path=str(path), error=repr(exc))
        return {}


def _adapter(row: dict[str, Any]) -> Adapter:
    texts = {key: row[key] for key in ("name", "path", "base_model")} | {
        key: row.get(key, "") for key in ("source", "backend")
    }
    if not all(isinstance(text, str) for text in texts.values()):
        raise ValueError(f"an adapter's fields must be texts: {texts}")
    return Adapter(
        **texts,
        is_pinned=bool(row.get("is_pinned")),
        is_wanted=bool(row.get("is_wanted", True)),
        leaves=tuple(str(name) for name in row.get("leaves", ())),
    )


def write(path: Path, adapters: dict[str, Adapter]) -> None:
    """Write them, whole or not at all (blocks).

    Raises  Conflict: the folder cannot be written
    """
    keep(path, {"adapters": [asdict(adapter) for adapter in adapters.values()]})
