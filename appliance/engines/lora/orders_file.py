"""The orders of adapters that go on in the background, in one file of the state folder, for the owner's eyes only: what was accepted is not
lost with the process. No credential is in it, only the names of those that came with an order."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from appliance.base import jsons
from appliance.base.files import write_atomic
from appliance.base.logs import get_logger
from appliance.engines.lora.plan import Adapter

log = get_logger("lora")
FILE = "lora-orders.json"
TEXTS = ("name", "path", "base_model", "source", "backend")


@dataclass(frozen=True, slots=True)
class StoredOrder:
    """An accepted order as it outlasts a restart.

    config   what may be seen of it; needs: names of the credentials that came with it
    phase    as it was when it was written (lora_orders.Pending); since_s: since when, seconds since 1970; error: of one that came to nothing
    """

    adapter: Adapter
    is_partial: bool = False
    max_workers: int = 8
    config: Mapping[str, str] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    phase: str = "downloading"
    since_s: float = 0.0
    error: str = ""


def read(path: Path) -> list[StoredOrder]:
    """Give the kept orders (blocks); a file that is missing is empty, one that cannot be read is told of and left as it is."""
    try:
        return [_from_row(row) for row in jsons.loads(path.read_bytes())["orders"]]
    except FileNotFoundError:
        return []
    except (OSError, jsons.InvalidJson, KeyError, TypeError, ValueError, AttributeError) as exc:
        log.error("adapter_orders_unreadable", path=str(path), error=repr(exc))
        return []


def write(path: Path, orders: Sequence[StoredOrder]) -> None:
    """Write them, whole or not at all; a folder that cannot be written is told of, and the orders go on (blocks)."""
    try:
        write_atomic(path, jsons.dumps({"orders": [_as_row(order) for order in orders]}))
    except OSError as exc:
        log.warning(
            "adapter_orders_not_written",
            path=str(path),
            reason=str(exc),
            remedy="Make the folder writable; until then orders are lost at a restart.",
        )


def _as_row(order: StoredOrder) -> dict[str, Any]:
    adapter = order.adapter
    return {
        **{name: getattr(adapter, name) for name in TEXTS},
        "is_pinned": adapter.is_pinned,
        **{name: value for name, value in asdict(order).items() if name != "adapter"},
    }


def _from_row(row: Mapping[str, Any]) -> StoredOrder:
    """Raises KeyError, TypeError, ValueError, AttributeError: it is none."""
    texts = {name: row[name] for name in TEXTS}
    if not all(isinstance(text, str) for text in [*texts.values(), row["phase"], row["error"]]):
        raise ValueError("an order's fields must be texts")
    return StoredOrder(
        Adapter(**texts, is_pinned=bool(row["is_pinned"])),
        bool(row["is_partial"]),
        int(row["max_workers"]),
        {str(key): str(value) for key, value in row["config"].items()},
        tuple(map(str, row["needs"])),
        row["phase"],
        float(row["since_s"]),
        row["error"],
    )
