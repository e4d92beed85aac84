"""The models that one server serves: configured ones, those that the engine lists, and declared adapters."""

from appliance.engines.backends.adapters import AdapterState
from appliance.engines.dialects.contract import EngineFacts
from appliance.engines.dialects.table import AUTO
from appliance.engines.specs import BackendSpec
from appliance.engines.types import ModelCard, ServedModel


class ServedModels:
    """The models of a server by name.

    Attributes:
        facts: What the engine reported of itself.
        has_facts: Whether it ever reported anything.
        is_current: Whether the facts are from after it came up, and after our latest change.
    """

    def __init__(self, spec: BackendSpec, *, created_s: int) -> None:
        self.facts = EngineFacts({})
        self.has_facts = False
        self.is_current = False
        self.adapters = AdapterState(spec.name)
        self._spec = spec
        self._configured = _configured(spec, created_s)
        self._by_name = self._configured
        self._by_alias: dict[str, ServedModel] = {}

    def cards(self) -> list[ModelCard]:
        """List the models."""
        return [served.card for served in self._by_name.values()]

    def names(self) -> tuple[str, ...]:
        """List the names of the models."""
        return tuple(self._by_name)

    def find(self, name: str) -> ServedModel | None:
        """Return a model by its name or one of its aliases; None = it is not served."""
        return self._by_name.get(name) or self._by_alias.get(name)

    def adapter_names(self) -> tuple[str, ...]:
        """List the adapters among the models."""
        return tuple(name for name, served in self._by_name.items() if served.card.parent)

    @property
    def is_unknown(self) -> bool:
        """Whether the models are unknown: none are configured, and the engine was never reached."""
        return not self.has_facts and not self._spec.models

    def update(self, facts: EngineFacts) -> bool:
        """Take the facts that the engine reports; return whether the models changed."""
        self.is_current = True
        self.facts, self.has_facts = facts, True
        self.adapters.update_from(facts.models)
        return self.refresh()

    def invalidate(self) -> None:
        """Remove the adapters: the engine went down, and a restarted one has none of them."""
        self.is_current = False
        self.adapters.clear()

    def refresh(self) -> bool:
        """Combine facts, configuration and adapters again; return whether the models changed.

        1. models are configured  → those, with the facts of the engine about them
        2. the engine was reached → those that it lists
        3. otherwise              → none
        Declared adapters that the engine does not have are left out in each case.
        """
        former = self._by_name
        if self._spec.models:  # 1
            models = {name: self.facts.models.get(name, one) for name, one in self._configured.items()}
        else:  # 2, 3
            models = self.facts.models
        self._by_name = self.adapters.apply_to(models)
        self._by_alias = {alias: served for served in self._by_name.values() for alias in served.card.aliases}
        return self._by_name != former


def _configured(spec: BackendSpec, created_s: int) -> dict[str, ServedModel]:
    owner = spec.kind if spec.kind != AUTO else "backend"
    return {name: ServedModel(ModelCard(name, created_s, owner, name), name) for name in spec.models}
