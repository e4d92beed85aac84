"""Changes of the operator that survive a restart: one file of the state folder."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from appliance.base import jsons
from appliance.base.logs import get_logger
from appliance.engines.persistence import persist

log = get_logger("fleet")


@dataclass(slots=True)
class RuntimeChanges:
    """Changes that are applied on top of the configuration.

    The file may hold keys of servers: only its owner can read it.

    Attributes:
        added: Backends by name, with the fields of BackendSpec.
        removed: Names of configured backends.
        drained: Names of backends.
        strategies: By pool; "" = all pools.
    """

    added: dict[str, dict[str, Any]] = field(default_factory=dict)
    removed: list[str] = field(default_factory=list)
    drained: list[str] = field(default_factory=list)
    strategies: dict[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> "RuntimeChanges":
        """Read them; a missing file has none, one that cannot be read is logged and left as it is."""
        try:
            value = jsons.loads(path.read_bytes())
            return cls(
                dict(value["added"]),
                list(value["removed"]),
                list(value["drained"]),
                dict(value["strategies"]),
            )
        except FileNotFoundError:
            return cls()
        except (OSError, jsons.InvalidJson, KeyError, TypeError, ValueError) as exc:
            log.error("changes_unreadable", path=str(path), error=repr(exc))
            return cls()

    def write(self, path: Path) -> None:
        """Write them, whole or not at all (blocks).

        Raises:
            Conflict: The folder cannot be written.
        """
        persist(path, asdict(self))

    def add(self, name: str, fields: dict[str, Any]) -> None:
        """Record a backend that was added; empty fields are left out."""
        self.added[name] = {key: value for key, value in fields.items() if value not in (None, "", [])}
        self.added[name]["name"] = name
        if name in self.removed:
            self.removed.remove(name)

    def remove(self, name: str, *, is_configured: bool) -> None:
        """Record that a backend was removed; else a configured one would be back after a restart."""
        self.added.pop(name, None)
        if is_configured and name not in self.removed:
            self.removed.append(name)

    def drain(self, name: str, *, is_draining: bool) -> bool:
        """Record whether a backend is drained; return whether that changed anything."""
        drained = [other for other in self.drained if other != name]
        if is_draining:
            drained.append(name)
        is_changed = drained != self.drained
        self.drained = drained
        return is_changed

    def set_strategy(self, strategy: str, pool: str) -> None:
        """Record the strategy of a pool; that of all pools ("") replaces those of single pools."""
        if not pool:
            self.strategies.clear()
        self.strategies[pool] = strategy
