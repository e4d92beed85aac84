"""A router before some pools, for tables of names and routes."""

from typing import Any

from appliance.base.clock import FakeClock
from appliance.base.metrics.registry import Metrics
from appliance.engines.backends.adapters import AdapterNotLoaded, adapter_not_loaded
from appliance.engines.pool import Pool
from appliance.engines.router import Router
from appliance.engines.settings import EngineSettings
from tests.engines.scripted import TableBackend, card, pool_of

ALIASES = ["short=b", "lost-short=lost", "plain alias of the hosted API"]


class Adapters:
    """Declared adapters that no backend has, by name."""

    def __init__(self, *absent: str, is_expected: bool = False) -> None:
        self.absent, self.is_expected = set(absent), is_expected

    def find_absent(self, name: str) -> AdapterNotLoaded | None:
        if name not in self.absent:
            return None
        error = adapter_not_loaded(name, "loading")
        error.is_expected = self.is_expected
        return error


def routing(*pools: Pool, adapters: Adapters | None = None, **settings: Any) -> Router:
    clock = FakeClock()
    router = Router(EngineSettings(**({"model_aliases": ALIASES} | settings)), clock=clock, metrics=Metrics())
    if adapters is not None:
        router.connect_adapters(adapters)
    router.set_pools(list(pools))
    return router


def two_pools() -> tuple[Pool, Pool]:
    return (
        pool_of(TableBackend("one", models=["a", card("b", aliases=("bee",))]), name="first"),
        pool_of(TableBackend("two", models=["b", "c"]), name="second"),
    )
