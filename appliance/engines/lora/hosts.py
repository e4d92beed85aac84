"""The backends that can have adapters, and what each of them may serve of the declared ones."""

from collections.abc import Collection

from appliance.engines.backends.managed import ManagedBackend
from appliance.engines.backends.server import EngineServer
from appliance.engines.lora.host import AdapterHost
from appliance.engines.lora.managed_host import ManagedHost
from appliance.engines.lora.plan import Adapter, HostView, guarded_names, is_target
from appliance.engines.lora.server_host import ServerHost
from appliance.engines.router import Router


class AdapterHosts:
    """One host for each backend of the router that can have adapters, as long as that backend exists."""

    def __init__(self, router: Router) -> None:
        self._router = router
        self._hosts: dict[str, AdapterHost] = {}

    def by_name(self) -> dict[str, AdapterHost]:
        """Return the hosts by name, in the router's order; a backend that was replaced gets a new one."""
        hosts: dict[str, AdapterHost] = {}
        for backend in self._router.backends():
            former = self._hosts.get(backend.name)
            if isinstance(backend, EngineServer):
                is_same = isinstance(former, ServerHost) and former.server is backend
                hosts[backend.name] = former if former and is_same else ServerHost(backend)
            elif isinstance(backend, ManagedBackend):
                is_same = isinstance(former, ManagedHost) and former.managed is backend
                hosts[backend.name] = former if former and is_same else ManagedHost(backend)
        self._hosts = hosts
        return hosts

    def views(self) -> list[HostView]:
        """Return the state of each that decisions need."""
        return [host.view() for host in self.by_name().values()]

    def targets(self, adapter: Adapter) -> list[AdapterHost]:
        """Return those that are to have an adapter."""
        return [host for host in self.by_name().values() if is_target(adapter, host.view())]

    def has_target(self, adapter: Adapter) -> bool:
        """Whether a backend that is to have the adapter is up."""
        return any(view.is_up and is_target(adapter, view) for view in self.views())

    async def wait_target(self, adapter: Adapter) -> None:
        """Wait until a backend that is to have the adapter is up."""
        while True:
            seen = self._router.changed.version
            if self.has_target(adapter):
                return
            await self._router.changed.newer(seen)

    def is_current(self, host: AdapterHost) -> bool:
        """Whether the host's backend still exists."""
        return self._hosts.get(host.name) is host

    def guard(self, adapters: Collection[Adapter]) -> None:
        """Stop each backend from serving a declared name without having its adapter."""
        for host in self.by_name().values():
            if host.adapters.declare(guarded_names(host.view(), adapters)):
                host.refresh()

    def publish(self, adapters: Collection[Adapter]) -> None:
        """Combine again what all of them serve, and wake the requests and loops that wait for it."""
        self.guard(adapters)
        for host in self._hosts.values():
            host.refresh()
        self._router.notify_changed()
