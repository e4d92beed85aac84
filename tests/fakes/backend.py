"""A backend that answers by script, for tests of the doors: everything a router needs of it, and no wire."""

from collections.abc import Callable
from typing import ClassVar, Self

from appliance.base.clock import Clock
from appliance.base.metrics.registry import Metrics
from appliance.engines.backends.contract import Backend
from appliance.engines.backends.stats import BackendStats
from appliance.engines.outcome import Outcome
from appliance.engines.pool import Pool
from appliance.engines.router import Router
from appliance.engines.settings import EngineSettings
from appliance.engines.slots import AnySlot, Slot
from appliance.engines.types import (
    BackendState,
    BackendStatus,
    EngineReply,
    EngineRequest,
    ModelCard,
    RequestOptions,
    ServedModel,
)


class FakeBackend:
    """What every stand-in for a backend is.

    Slots and counters, and no capability but to be a server of its own.
    """

    pool: ClassVar[str] = "default"

    def __init__(self, name: str, clock: Clock, *, kind: str = "scripted") -> None:
        self.name, self.kind = name, kind
        self.is_remote, self.is_unknown, self.context_tokens = False, False, 0
        self.stats = BackendStats(name, clock=clock, metrics=Metrics())
        self.member = self.stats.member
        self.on_capacity: Callable[[], None] = lambda: None
        self._clock = clock

    @property
    def is_direct(self) -> bool:
        return self.kind not in {"hosted", "demo"}

    @property
    def is_managed(self) -> bool:
        return self.kind == "managed"

    @property
    def is_demo(self) -> bool:
        return self.kind == "demo"

    @property
    def in_flight(self) -> int:
        return self.member.active

    def cards(self) -> list[ModelCard]:
        raise NotImplementedError

    def find_model(self, model: str) -> ServedModel | None:
        raise NotImplementedError

    async def send(self, request: EngineRequest, slot: AnySlot, *, budget_s: float) -> EngineReply:
        raise NotImplementedError

    def status(self, now_s: float) -> BackendStatus:
        return BackendStatus.READY

    def take(self, reason: str) -> Slot[Self]:
        return self.stats.open_slot(self, reason)

    def uncounted_slot(self) -> Slot[Self]:
        return self.stats.open_uncounted_slot(self)

    async def prepare_passthrough(
        self, slot: AnySlot, model: str | None, options: RequestOptions
    ) -> None: ...

    def record(self, slot: AnySlot, outcome: Outcome, retry_after_s: float | None) -> None:
        self.stats.close_slot(slot, outcome)
        self.on_capacity()

    def describe(self) -> BackendState:
        return BackendState(self.name, self.kind, True, "")

    def measure(self) -> None: ...

    async def close(self) -> None: ...


class ScriptedBackend(FakeBackend):
    """Subclasses say what it serves (`cards`) and how it answers (`answer`)."""

    def __init__(self, clock: Clock, *, name: str = "scripted") -> None:
        super().__init__(name, clock)
        self.asked: list[EngineRequest] = []

    def serves(self, model: str) -> bool:
        return True

    async def answer(self, request: EngineRequest) -> EngineReply:
        raise NotImplementedError

    def find_model(self, model: str) -> ServedModel | None:
        card = self.cards()[0]
        return ServedModel(card, card.upstream) if self.serves(model) else None

    async def send(self, request: EngineRequest, slot: AnySlot, *, budget_s: float) -> EngineReply:
        self.asked.append(request)
        try:
            return await self.answer(request)
        finally:
            slot.release(Outcome.OK)


def router_of(*backends: Backend, clock: Clock, settings: EngineSettings | None = None) -> Router:
    """Give a router with one pool of these backends."""
    router = Router(settings or EngineSettings(), clock=clock, metrics=Metrics())
    pool = Pool("default", strategy="least_busy")
    pool.backends = list(backends)
    router.set_pools([pool])
    return router
