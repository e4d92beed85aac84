"""The state of adapters, from memory: the list, the metrics, and why one cannot be requested."""

from dataclasses import dataclass

from appliance.base.errors import Conflict, NoSuchModel, NotFound, Unavailable
from appliance.base.metrics.registry import Metrics
from appliance.engines.backends.adapters import AdapterNotLoaded, adapter_not_loaded
from appliance.engines.lora.hosts import AdapterHosts
from appliance.engines.lora.plan import Adapter, HostView, State, find_base_model, find_involved, is_target
from appliance.engines.lora.table import AdapterTable
from appliance.engines.router import Router


@dataclass(frozen=True, slots=True)
class AdapterStatus:
    """The state of one adapter on one backend."""

    backend: str
    kind: str
    state: State
    detail: str = ""


@dataclass(frozen=True, slots=True)
class AdapterRow:
    """One adapter with all its backends.

    Attributes:
        is_declared: False = only an engine has it, and may lose it at any time.
    """

    adapter: Adapter
    backends: tuple[AdapterStatus, ...]
    is_declared: bool = True


class AdapterStatusView:
    """Reads the table and the backends; changes nothing."""

    def __init__(self, router: Router, *, table: AdapterTable, hosts: AdapterHosts, metrics: Metrics) -> None:
        self._router = router
        self._table = table
        self._hosts = hosts
        self._metrics = metrics

    def find_base_model(self, wanted: str, backend: str) -> str:
        """Return the base model that a new adapter is for.

        Args:
            wanted: Its name or an alias of it; "" = the only one that there is.
            backend: The only backend that is to have the adapter; "" = all.

        Raises:
            NotFound: There is no such backend.
            Unavailable: No backend has responded yet.
            NoSuchModel: No backend that loads adapters serves the model.
            Conflict: There are several models to choose from.
        """
        hosts, views = self._hosts.by_name(), self._hosts.views()
        if backend and backend not in hosts:
            raise NotFound(
                f"There is no backend {backend[:200]!r} that can load adapters. "
                f"Known: {', '.join(hosts) or 'none'}.",
                code="no_such_backend",
            )
        if wanted and not any(wanted in view.bases for view in views):
            card = self._router.find_card(wanted)  # any other name means no model here
            wanted = card.id if card is not None else wanted
        found = find_base_model(wanted, backend, views)
        if isinstance(found, str):
            return found
        if not found and any(not view.is_up for view in views):
            raise Unavailable(
                "No backend that can load adapters has responded yet.", code="no_backend", retry_after_s=2
            )
        choice = ", ".join(found) or "none"
        if wanted or not found:
            raise NoSuchModel(
                f"No backend that loads adapters serves the model {wanted[:200]!r}. Available: {choice}.",
                param="base_model",
            )
        raise Conflict(
            f"Set `base_model`: the adapter can be for several models. Available: {choice}.",
            param="base_model",
            code="base_model_needed",
        )

    def find_absent(self, name: str) -> AdapterNotLoaded | None:
        """Return why a declared adapter cannot be requested at the moment; None = none of that name."""
        adapter = self._table.declared.get(name)
        if adapter is None or not adapter.is_wanted:
            return None
        reasons = []
        is_expected = False
        for host in self._hosts.by_name().values():
            view = host.view()
            if is_target(adapter, view):
                state, detail = self._table.state(adapter, view)
                is_failed = state == "failed"
                reasons.append(
                    f"{host.name} is failed ({detail})" if is_failed else f"{host.name} is {state}"
                )
                is_expected |= host.is_expected() and not is_failed
            elif not view.bases:  # what it serves is not known yet
                is_expected |= host.is_expected()
        reason = ", ".join(reasons) or f"no backend serves its base model {adapter.base_model!r}"
        error = adapter_not_loaded(name, reason)
        error.is_expected = is_expected
        return error

    def rows(self) -> list[AdapterRow]:
        """List the declared adapters, then those that engines have by themselves."""
        rows = [self.row(adapter) for adapter in self._table.declared.values()]
        listing: dict[str, list[HostView]] = {}
        for view in self._hosts.views():
            for name in view.listed:
                if not self._is_declared_for(name, view):
                    listing.setdefault(name, []).append(view)
        return rows + [_undeclared_row(name, views) for name, views in listing.items()]

    def row(self, adapter: Adapter) -> AdapterRow:
        """Return one adapter with its state on each backend that it involves."""
        involved = find_involved(adapter, self._hosts.views())
        states = (
            AdapterStatus(view.backend, view.kind, *self._table.state(adapter, view)) for view in involved
        )
        return AdapterRow(adapter, tuple(states))

    def _is_declared_for(self, name: str, view: HostView) -> bool:
        adapter = self._table.declared.get(name)
        return adapter is not None and (is_target(adapter, view) or view.backend in adapter.unload_from)

    def measure(self) -> None:
        """Bring the gauge up to date; called when metrics are read."""
        family = self._metrics.lora_loaded
        family.clear()
        for row in self.rows():
            for one in row.backends:
                family.labels(row.adapter.name, one.backend, one.state).set(1)


def _undeclared_row(name: str, views: list[HostView]) -> AdapterRow:
    first = views[0]
    adapter = Adapter(name, first.listed[name], ", ".join(sorted(first.bases)))
    states = (AdapterStatus(view.backend, view.kind, "loaded" if view.is_up else "down") for view in views)
    return AdapterRow(adapter, tuple(states), is_declared=False)
