"""Backends that can replace each other, and the strategy that chooses one of them."""

from appliance.base.balancing import Balancer
from appliance.base.errors import NotFound
from appliance.engines.backends.contract import Backend

MAX_CACHED_MODELS = 10_000  # the names come from clients if a backend serves any name


class Pool:
    """A named set of backends. `overflow`: the pool that takes over when this one cannot; "" = none."""

    def __init__(self, name: str, *, strategy: str, overflow: str = "") -> None:
        self.name = name
        self.overflow = overflow
        self.backends: list[Backend] = []
        self.balancer = Balancer(strategy)
        self._by_model: dict[str, list[Backend]] = {}

    def refresh(self) -> None:
        """Clear what is cached; called when the backends, or their models, changed."""
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


class Pools:
    """All pools, in the order in which a model is searched in them."""

    def __init__(self) -> None:
        self.all: list[Pool] = []

    def refresh(self) -> None:
        """Clear what every pool has cached."""
        for pool in self.all:
            pool.refresh()

    def backends(self) -> list[Backend]:
        """Return every backend, in order."""
        return [backend for pool in self.all for backend in pool.backends]

    def backend(self, name: str) -> Backend:
        """Return the backend called `name`.

        Raises:
            NotFound: There is none.
        """
        for backend in self.backends():
            if backend.name == name:
                return backend
        known = ", ".join(backend.name for backend in self.backends()) or "none"
        raise NotFound(f"There is no backend {name[:200]!r}. Known: {known}.", code="no_such_backend")

    def pool_of(self, backend: Backend) -> Pool:
        """Return the pool that `backend` is in."""
        return next(pool for pool in self.all if backend in pool.backends)

    def stages_from(self, pool: Pool) -> list[Pool]:
        """Return `pool` and those that it overflows into, in order, each once."""
        stages = [pool]
        while stages[-1].overflow:
            following = next((one for one in self.all if one.name == stages[-1].overflow), None)
            if following is None or following in stages:
                break
            stages.append(following)
        return stages
