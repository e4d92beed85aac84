"""What is known of declared adapters: who can have them, how each stands where, and why one cannot be asked for. From memory."""

from dataclasses import dataclass
from pathlib import Path

from appliance.base.clock import Clock
from appliance.base.errors import Conflict, NoSuchModel, NotFound, Unavailable
from appliance.base.logs import get_logger
from appliance.base.metrics.registry import Metrics
from appliance.base.tasks import Tasks
from appliance.engines.backends.adapters import AdapterNotLoaded, adapter_not_loaded
from appliance.engines.backends.managed import ManagedBackend
from appliance.engines.backends.server import EngineServer
from appliance.engines.lora import file as lora_file
from appliance.engines.lora.hosts import AdapterHost, ManagedHost, ServerHost
from appliance.engines.lora.plan import (
    Adapter,
    Failure,
    HostView,
    State,
    base_of,
    concerned,
    fits,
    state_of,
)
from appliance.engines.router import Router

log = get_logger("lora")


@dataclass(frozen=True, slots=True)
class AdapterStatus:
    """How one adapter stands on one backend."""

    backend: str
    kind: str
    state: State
    detail: str = ""


@dataclass(frozen=True, slots=True)
class AdapterRow:
    """One adapter with all its backends. `is_declared` False: an engine has it by itself, and keeps or loses it as it likes."""

    adapter: Adapter
    backends: tuple[AdapterStatus, ...]
    is_declared: bool = True


class AdapterStatusView:
    """What Adapters stands on."""

    def __init__(
        self,
        router: Router,
        *,
        tasks: Tasks,
        clock: Clock,
        metrics: Metrics,
        path: Path | None = None,
    ) -> None:
        self._router, self._tasks, self._clock, self._metrics, self._path = (
            router,
            tasks,
            clock,
            metrics,
            path,
        )
        self.declared: dict[str, Adapter] = lora_file.read(path) if path is not None else {}
        self._hosts: dict[str, AdapterHost] = {}
        self._failures: dict[tuple[str, str], Failure] = {}
        self._busy: set[tuple[str, str]] = set()
        router.connect_adapters(self)

    # ---- who is there

    def hosts(self) -> dict[str, AdapterHost]:
        """Give those who can have adapters, by name."""
        found: dict[str, AdapterHost] = {}
        for backend in self._router.backends():
            known = self._hosts.get(backend.name)
            if isinstance(backend, EngineServer):
                found[backend.name] = (
                    known
                    if isinstance(known, ServerHost) and known.server is backend
                    else ServerHost(backend)
                )
            elif isinstance(backend, ManagedBackend):
                found[backend.name] = (
                    known
                    if isinstance(known, ManagedHost) and known.managed is backend
                    else ManagedHost(backend)
                )
        self._hosts = found
        return found

    def views(self) -> list[HostView]:
        return [host.view() for host in self.hosts().values()]

    def base_for(self, wanted: str, backend: str) -> str:
        """Give the base model that a new adapter is for.

        Takes   wanted: its name, or another one of it ("" = the only one there is); backend: the one backend that is meant ("" = all)
        Raises  NotFound: no such backend · NoSuchModel: nobody who loads adapters serves it · Conflict: there are several to choose from
        """
        views = self.views()
        if backend and backend not in self._hosts:
            raise NotFound(
                f"There is no backend {backend[:200]!r} that can have adapters. Known: {', '.join(self._hosts) or 'none'}.",
                code="no_such_backend",
            )
        if wanted and not any(wanted in view.bases for view in views):
            wanted = self._router.resolve(wanted).id
        found = base_of(wanted, backend, views)
        if isinstance(found, str):
            return found
        if not found and any(not view.is_up for view in views):
            raise Unavailable(
                "No backend that can have adapters has answered yet.", code="no_backend", retry_after_s=2
            )
        choice = ", ".join(found) or "none"
        if wanted or not found:
            raise NoSuchModel(
                f"Nobody here who loads adapters serves the model {wanted[:200]!r}. There are: {choice}.",
                param="base_model",
            )
        raise Conflict(
            f"Say by `base_model` which model the adapter is for. There are: {choice}.",
            param="base_model",
            code="base_model_needed",
        )

    # ---- telling

    def find_absent(self, name: str) -> AdapterNotLoaded | None:
        """Say why a declared adapter cannot be asked for at the moment; None = there is none of that name."""
        adapter = self.declared.get(name)
        if adapter is None or not adapter.is_wanted:
            return None
        hosts = [host for host in self.hosts().values() if fits(adapter, host.view())]
        states = {host.name: state_of(adapter, host.view(), self._failures, self._busy) for host in hosts}
        told = ", ".join(
            f"{backend} is {state}" + (f" ({why})" if state == "failed" else "")
            for backend, (state, why) in states.items()
        )
        error = adapter_not_loaded(name, told or f"nobody serves its base model {adapter.base_model!r}")
        error.is_expected = any(
            host.is_coming() and states[host.name][0] != "failed" for host in hosts
        ) or any(not host.view().bases and host.is_coming() for host in self._hosts.values())
        return error

    def rows(self) -> list[AdapterRow]:
        """List the declared adapters, then those that engines have by themselves."""
        rows = [self._row(adapter) for adapter in self.declared.values()]
        views = self.views()
        foreign = dict.fromkeys(
            name for view in views for name in view.listed if not self._is_declared_for(name, view)
        )
        for name in foreign:
            own = [view for view in views if name in view.listed and not self._is_declared_for(name, view)]
            adapter = Adapter(name, own[0].listed[name], ", ".join(sorted(own[0].bases)))
            rows.append(
                AdapterRow(
                    adapter,
                    tuple(
                        AdapterStatus(view.backend, view.kind, "loaded" if view.is_up else "down")
                        for view in own
                    ),
                    is_declared=False,
                )
            )
        return rows

    def _is_declared_for(self, name: str, view: HostView) -> bool:
        adapter = self.declared.get(name)
        return adapter is not None and (fits(adapter, view) or view.backend in adapter.leaves)

    def _row(self, adapter: Adapter) -> AdapterRow:
        return AdapterRow(
            adapter,
            tuple(
                AdapterStatus(view.backend, view.kind, *state_of(adapter, view, self._failures, self._busy))
                for view in concerned(adapter, self.views())
            ),
        )

    def measure(self) -> None:
        """Bring the gauge up to date; called when metrics are read."""
        family = self._metrics.lora_loaded
        family.clear()
        for row in self.rows():
            for one in row.backends:
                family.labels(row.adapter.name, one.backend, one.state).set(1)
