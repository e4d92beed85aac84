"""A backend that answers by script, for tests of the doors: everything a router needs of it, and no wire."""

from typing import ClassVar

from appliance.base.clock import Clock
from appliance.base.metrics.registry import Metrics
from appliance.engines.outcome import Outcome
from appliance.engines.pool import Pool
from appliance.engines.router import Router
from appliance.engines.settings import EngineSettings
from appliance.engines.slots import AnySlot, BackendStats
from appliance.engines.types import (
    BackendState,
    BackendStatus,
    EngineReply,
    EngineRequest,
    ModelCard,
    ServedModel,
)


class ScriptedBackend(BackendStats):
    """Subclasses say what it serves (`cards`) and how it answers (`answer`)."""

    kind: ClassVar[str] = "scripted"
    is_remote: ClassVar[bool] = False
    is_direct: ClassVar[bool] = True
    context_tokens: ClassVar[int] = 0

    def __init__(self, clock: Clock, *, name: str = "scripted") -> None:
        super().__init__(name, pool="default", clock=clock, metrics=Metrics())
        self.asked: list[EngineRequest] = []

    def cards(self) -> list[ModelCard]:
        raise NotImplementedError

    def serves(self, model: str) -> bool:
        return True

    async def answer(self, request: EngineRequest) -> EngineReply:
        raise NotImplementedError

    def find_model(self, model: str) -> ServedModel | None:
        card = self.cards()[0]
        return ServedModel(card, card.upstream) if self.serves(model) else None

    def status(self, now_s: float) -> BackendStatus:
        return BackendStatus.READY

    def state(self) -> BackendState:
        return BackendState(self.name, self.kind, True, "")

    def measure(self) -> None: ...

    async def close(self) -> None: ...

    async def send(self, request: EngineRequest, place: AnySlot, *, budget_s: float) -> EngineReply:
        self.asked.append(request)
        try:
            return await self.answer(request)
        finally:
            place.release(Outcome.OK)


def router_of(*backends: object, clock: Clock, settings: EngineSettings | None = None) -> Router:
    """Give a router with one pool of these backends."""
    router = Router(settings or EngineSettings(), clock=clock, metrics=Metrics())
    pool = Pool("default", strategy="least_busy")
    pool.backends = list(backends)  # type: ignore[arg-type]
    router.set_pools([pool])
    return router
