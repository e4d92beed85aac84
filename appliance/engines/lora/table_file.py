"""The file of the declared adapters, in the state folder: they are declared again after a restart."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from appliance.base import jsons
from appliance.base.logs import get_logger
from appliance.engines.lora.plan import Adapter
from appliance.engines.persistence import persist

log = get_logger("lora")
FILE_NAME = "lora-adapters.json"
_UNLOAD_FROM = "leaves"  # the key of `unload_from` in files of every release


def read_adapters(path: Path) -> dict[str, Adapter]:
    """Return the adapters by name (blocks).

    A missing file is empty. One that cannot be read is logged, and left as it is.
    """
    try:
        rows = jsons.loads(path.read_bytes())["adapters"]
        return {adapter.name: adapter for adapter in map(_from_row, rows)}
    except FileNotFoundError:
        return {}
    except (OSError, jsons.InvalidJson, KeyError, TypeError, ValueError) as exc:
        log.error("adapters_unreadable", path=str(path), error=repr(exc))
        return {}


def write_adapters(path: Path, adapters: dict[str, Adapter]) -> None:
    """Write the adapters, whole or not at all (blocks); not those of the configuration file.

    Raises:
        Conflict: The folder cannot be written.
    """
    stored = [one for one in adapters.values() if not (one.is_configured and one.is_wanted)]
    persist(path, {"adapters": list(map(_to_row, stored))})


def _to_row(adapter: Adapter) -> dict[str, Any]:
    row = asdict(adapter)
    row[_UNLOAD_FROM] = row.pop("unload_from")
    del row["is_configured"]
    return row


def _from_row(row: dict[str, Any]) -> Adapter:
    texts = {key: row[key] for key in ("name", "path", "base_model")}
    texts |= {key: row.get(key, "") for key in ("source", "backend")}
    if not all(isinstance(text, str) for text in texts.values()):
        raise ValueError(f"fields of an adapter must be texts: {texts}")
    return Adapter(
        **texts,
        is_pinned=bool(row.get("is_pinned")),
        is_wanted=bool(row.get("is_wanted", True)),
        unload_from=tuple(str(name) for name in row.get(_UNLOAD_FROM, ())),
    )
