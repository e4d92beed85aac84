"""Backends that stand in for each other, and the strategy by which one of them is chosen."""

from appliance.base.balancing import Balancer
from appliance.engines.backends.contract import Backend

MAX_CACHED_MODELS = 10_000  # names come from clients where any name is served


class Pool:
    """A named set of backends. `overflow`: the pool that takes over when this one cannot; "" = none."""

    def __init__(self, name: str, *, strategy: str, overflow: str = "") -> None:
        self.name = name
        self.overflow = overflow
        self.backends: list[Backend] = []
        self.balancer = Balancer(strategy)
        self._by_model: dict[str, list[Backend]] = {}

    def refresh(self) -> None:
        """Forget who serves what; called when the backends, or their models, changed."""
        self._by_model.clear()

    def serving(self, model: str | None) -> list[Backend]:
        """Return the backends that serve `model`, in order; None = all."""
        if model is None:
            return self.backends
        found = self._by_model.get(model)
        if found is None:
            found = [backend for backend in self.backends if backend.find_model(model) is not None]
            if len(self._by_model) >= MAX_CACHED_MODELS:
                self._by_model.clear()
            self._by_model[model] = found
        return found
