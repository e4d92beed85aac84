"""The declared adapters, and what is under way and what failed with each of them on each backend."""

import asyncio
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path

from appliance.base.clock import Clock
from appliance.base.errors import ApplianceError
from appliance.engines.lora.plan import Adapter, Failure, HostView, Pair, State, find_state, without_backend
from appliance.engines.lora.table_file import read_adapters, write_adapters


class AdapterTable:
    """The state that the parts of the adapter manager share.

    Attributes:
        declared: The adapters by name, those that are being unloaded included.
        changing: Adapters that an operator's change is about at this moment.
        failures: The latest failures in a row, by (adapter, backend).
        busy: The pairs with a command under way.

    Args:
        path: The file of the declared adapters; None = they are not stored.
    """

    def __init__(self, path: Path | None, *, clock: Clock) -> None:
        self._path = path
        self._clock = clock
        self.declared: dict[str, Adapter] = read_adapters(path) if path is not None else {}
        self.changing: dict[str, Adapter] = {}
        self.failures: dict[Pair, Failure] = {}
        self.busy: set[Pair] = set()
        self._next: dict[str, Adapter] = {}  # declared once the former one of that name is unloaded

    def configure(self, adapters: Collection[Adapter], targets: Callable[[Adapter], Collection[str]]) -> None:
        """Declare the adapters of the configuration file, as it is now.

        1. one of the file is there no more            → it is unloaded
        2. a declared one is another now               → it is unloaded, and then declared as in the file
        3. all others                                  → declared

        Args:
            adapters: All of the file.
            targets: Returns the backends that are to have an adapter.
        """
        wanted = {adapter.name: adapter for adapter in adapters}
        self._next.clear()
        for name, former in list(self.declared.items()):
            new = wanted.get(name)
            is_gone = new is None and former.is_configured  # 1
            if former.is_wanted and (is_gone or (new is not None and _place(new) != _place(former))):  # 2
                self.remove(former, tuple(targets(former)))
        for name, adapter in wanted.items():  # 3
            current = self.declared.get(name)
            waits = current is not None and not current.is_wanted
            (self._next if waits else self.declared)[name] = adapter

    def all_known(self) -> list[Adapter]:
        """List the declared adapters, and those that are about to be declared."""
        new = (adapter for name, adapter in self.changing.items() if name not in self.declared)
        return [*self.declared.values(), *new]

    def state(self, adapter: Adapter, view: HostView) -> tuple[State, str]:
        """Return the adapter's state on one backend, and the reason ("" = none)."""
        return find_state(adapter, view, self.failures, self.busy)

    def add_failure(self, adapter: str, backend: str, error: ApplianceError) -> None:
        """Note that a command failed; each one in a row delays the next retry further."""
        former = self.failures.get((adapter, backend))
        count = former.count + 1 if former else 1
        self.failures[adapter, backend] = Failure(count, self._clock.monotonic_s(), error.message)

    def clear_failures(self, adapter: str, backend: str) -> None:
        """Note that a command succeeded."""
        self.failures.pop((adapter, backend), None)

    def mark_unloaded(self, adapter: Adapter, backend: str, existing: Collection[str]) -> bool:
        """Note that a backend has unloaded an adapter; return whether the declared ones changed.

        Args:
            existing: Names of the backends that there are.
        """
        if self.declared.get(adapter.name) != adapter:
            return False
        remaining = without_backend(adapter, backend, existing)
        if remaining == adapter:
            return False
        if remaining is None:
            self._drop(adapter.name)
        else:
            self.declared[adapter.name] = remaining
        return True

    def remove(self, adapter: Adapter, unload_from: tuple[str, ...]) -> None:
        """Take an adapter out; it stays, as one that is not wanted, until `unload_from` have unloaded it."""
        self._drop(adapter.name)
        if unload_from:
            self.declared[adapter.name] = replace(adapter, is_wanted=False, unload_from=unload_from)

    def _drop(self, name: str) -> None:
        self.declared.pop(name, None)
        if (after := self._next.pop(name, None)) is not None:
            self.declared[name] = after

    async def save(self) -> None:
        """Write the file.

        Raises:
            Conflict: The folder cannot be written.
        """
        if self._path is not None:
            await asyncio.to_thread(write_adapters, self._path, dict(self.declared))


def _place(adapter: Adapter) -> tuple[str, str, str]:
    """Return what cannot be changed of an adapter while it is loaded."""
    return adapter.path, adapter.base_model, adapter.backend
