"""LoRA adapters: declared once, stored in a file, and loaded on every backend of their base model.

An operator's change is done on every backend that is up, or on none (changes.py). A backend that comes up
later, or was restarted without its adapters, gets them in the background (reconciler.py).
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from appliance.base.clock import Clock
from appliance.base.metrics.registry import Metrics
from appliance.base.tasks import Tasks
from appliance.engines.lora.changes import AdapterChange, AdapterChanges
from appliance.engines.lora.commands import HostCommands
from appliance.engines.lora.hosts import AdapterHosts
from appliance.engines.lora.managed_host import prepare_models
from appliance.engines.lora.plan import Adapter
from appliance.engines.lora.reconciler import AdapterReconciler
from appliance.engines.lora.status_view import AdapterStatusView
from appliance.engines.lora.table import AdapterTable
from appliance.engines.router import Router
from appliance.models.manager.manager import ModelManager


class AdapterManager:
    """One per appliance. Build it inside the event loop, then `start` it.

    Attributes:
        table: What is declared.
        hosts: The backends that can have adapters.
        status: The state of each adapter, for interfaces and metrics.

    Args:
        path: The file of the declared adapters; None = they are not stored.
    """

    def __init__(
        self, router: Router, *, tasks: Tasks, clock: Clock, metrics: Metrics, path: Path | None = None
    ) -> None:
        self.table = AdapterTable(path, clock=clock)
        self.hosts = AdapterHosts(router)
        self.status = AdapterStatusView(router, table=self.table, hosts=self.hosts, metrics=metrics)
        commands = HostCommands(self.table)
        self._changes = AdapterChanges(
            router, table=self.table, hosts=self.hosts, commands=commands, status=self.status, tasks=tasks
        )
        self._reconciler = AdapterReconciler(
            router, table=self.table, hosts=self.hosts, commands=commands, tasks=tasks, clock=clock
        )
        self._router = router
        router.connect_adapters(self.status)
        for name in self.table.declared:
            self.reserve(name)

    def reserve(self, name: str) -> None:
        """Let no other model answer under the name of an adapter, whether it gets loaded or not."""
        self._router.reserve_adapter(name)

    def configure(self, adapters: Sequence[Adapter]) -> None:
        """Declare the adapters of the configuration file; what it has no more is unloaded."""
        for adapter in adapters:
            self.reserve(adapter.name)
        self.table.configure(adapters, lambda one: [host.name for host in self.hosts.targets(one)])
        self.hosts.publish(self.table.all_known())

    def start(self) -> None:
        """Begin to bring the backends to what is declared."""
        self._reconciler.start()

    def prepare(self, manager: ModelManager) -> None:
        """Let the appliance's own models start with their adapters; called before any is started (blocks)."""
        prepare_models(manager, list(self.table.declared.values()))

    async def load(self, adapter: Adapter, *, is_partial: bool = False) -> AdapterChange:
        """Declare an adapter, and load it on every backend that is up.

        If one refuses, the others unload it again.

        Args:
            is_partial: One backend that has it is enough; the others are tried again in the background.

        Raises:
            Conflict: The name is taken, or the adapter is being changed.
            Unavailable: No backend is up.
            ApplianceError: What an engine's refusal means, see `refusal_error`.
        """
        self.reserve(adapter.name)
        return await self._changes.load(adapter, is_partial=is_partial)

    async def unload(
        self, name: str, *, is_partial: bool = False, more: dict[str, Any] | None = None
    ) -> AdapterChange:
        """Unload an adapter, declared or not, on every backend; on one that is down as soon as it is up.

        Args:
            is_partial: The adapter is no longer declared even if a backend refuses; that one is tried again
                in the background.
            more: Further fields for the engines.

        Raises:
            NotFound: No backend has it.
            Conflict: It is being changed.
            ApplianceError: What an engine's refusal means; the adapter stays as it was.
        """
        return await self._changes.unload(name, is_partial=is_partial, more=more or {})

    def describe_unloaded(self, adapter: Adapter) -> AdapterChange:
        """Return the result of an unload if no backend has the adapter."""
        return AdapterChange(self.status.row(replace(adapter, is_wanted=False)), {}, {})
