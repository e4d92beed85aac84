"""A backend in any state for the rows of a table, and the parts around it. No network, no waiting, a fake clock."""

from collections.abc import Iterable
from typing import Any

from appliance.base.clock import FakeClock
from appliance.base.errors import ApplianceError
from appliance.base.metrics.registry import Metrics
from appliance.engines.dispatch import Dispatcher
from appliance.engines.dispatch_request import DispatchRequest
from appliance.engines.outcome import Outcome
from appliance.engines.pool import Pool
from appliance.engines.receipts import Receipt
from appliance.engines.settings import EngineSettings
from appliance.engines.slots import AnySlot, Slot
from appliance.engines.types import (
    NO_OPTIONS,
    BackendState,
    BackendStatus,
    EngineReply,
    EngineRequest,
    ModelCard,
    Operation,
    RequestOptions,
    ServedModel,
)
from appliance.engines.upstream.attempt import AttemptFailed
from tests.fakes.backend import FakeBackend

READY = BackendStatus.READY
OK = EngineReply(body=b'{"choices":[]}')


class TableBackend(FakeBackend):
    """Serves `models`, in the state `status`, at most `limit` requests at a time, and answers by `script`.

    script   the result of each request to it, in turn: None = a reply, or an exception; after the last one, replies
    """

    def __init__(
        self,
        name: str,
        *script: Exception | None,
        models: Iterable[str | ModelCard] = ("m",),
        status: BackendStatus = READY,
        limit: int = 1000,
        context_tokens: int = 0,
        is_remote: bool = False,
        kind: str = "vllm",
        serves_any: bool = False,
        is_unknown: bool = False,
        cost: float = 0.0,
        clock: FakeClock | None = None,
    ) -> None:
        super().__init__(name, clock or FakeClock(), kind=kind)
        self.script = list(script)
        self.models = [model if isinstance(model, ModelCard) else card(model) for model in models]
        self.now, self.limit = status, limit
        self.context_tokens, self.is_remote = context_tokens, is_remote
        self.serves_any, self.is_unknown = serves_any, is_unknown
        self.member.cost = cost
        self.asked: list[str] = []

    def cards(self) -> list[ModelCard]:
        return self.models

    def find_model(self, model: str) -> ServedModel | None:
        for one in self.models:
            if model in {one.id, *one.aliases}:
                return ServedModel(one, one.upstream)
        return ServedModel(self.models[0], model) if self.serves_any else None

    def status(self, now_s: float) -> BackendStatus:
        if self.now is READY and self.member.active >= self.limit:
            return BackendStatus.FULL
        return self.now

    def describe(self) -> BackendState:
        return BackendState(self.name, self.kind, True, "", standing=self.status(0.0).value)

    def measure(self) -> None:
        self.measured = True

    async def send(self, request: EngineRequest, slot: AnySlot, *, budget_s: float) -> EngineReply:
        self.asked.append(request.wanted_model)
        request.receipt.attempts.append(slot.attempt)
        slot.attempt.endpoint = f"http://{self.name}"
        failure = self.script.pop(0) if self.script else None
        if isinstance(failure, AttemptFailed):
            slot.release(failure.outcome, status=failure.status, note=failure.note)
            raise failure
        slot.release(Outcome.OK if failure is None else Outcome.REFUSED)
        if failure is not None:
            raise failure
        return OK


def card(name: str, **more: Any) -> ModelCard:
    return ModelCard(name, 0, "vllm", name, **more)


def pool_of(*backends: FakeBackend, name: str = "default", strategy: str = "round_robin") -> Pool:
    pool = Pool(name, strategy=strategy)
    pool.backends = list(backends)
    return pool


class Dispatching:
    """A dispatcher before some pools, in order; further ones are overflows of the first."""

    def __init__(self, *pools: Pool, **settings: Any) -> None:
        self.clock, self.metrics, self.pools = FakeClock(), Metrics(), list(pools)
        self.dispatcher = Dispatcher(EngineSettings(**settings), clock=self.clock, metrics=self.metrics)
        for pool in pools:
            for backend in pool.backends:
                backend.on_capacity = self.dispatcher.serve_queues  # type: ignore[attr-defined]

    def request(
        self,
        *,
        model: str | None = "m",
        options: RequestOptions = NO_OPTIONS,
        budget_s: float = 300.0,
        reason: str = "model",
        **more: Any,
    ) -> DispatchRequest:
        return DispatchRequest(
            stages=self.pools,
            model=model,
            reason=reason,
            options=options,
            receipt=Receipt("r", public_model=model or ""),
            deadline_s=self.clock.monotonic_s() + budget_s,
            is_pinned=bool(options.pin),
            **more,
        )

    async def take(self, **how: Any) -> tuple[Slot, Receipt]:
        request = self.request(**how)
        return await self.dispatcher.take_slot(request), request.receipt

    async def answer(self, **how: Any) -> tuple[EngineReply | ApplianceError, Receipt]:
        """Return the result of a request, a reply or the error, and its receipt."""
        request = self.request(**how)
        try:
            return await self.dispatcher.answer(
                request, engine_request(receipt=request.receipt)
            ), request.receipt
        except ApplianceError as error:
            return error, request.receipt

    def count(self, family: str, *labels: str) -> float:
        """Return the value of a counter of the metrics."""
        value = getattr(self.metrics, family).labels(*labels)
        return float(value._value.get())


def engine_request(
    body: dict[str, Any] | None = None, *, receipt: Receipt | None = None, **more: Any
) -> EngineRequest:
    return EngineRequest(
        **(
            {
                "operation": Operation.CHAT,
                "parsed": body if body is not None else {"messages": []},
                "raw": None,
                "model": "m",
                "stream": False,
                "receipt": receipt or Receipt("r"),
                "wanted_model": "m",
                "public_model": "m",
            }
            | more
        )
    )
