"""Servers for tests: an EngineServer over a client of fixed pages, or over a stand-in on loopback."""

from collections.abc import Callable
from typing import Any

from appliance.base import jsons
from appliance.base.clock import Clock, FakeClock
from appliance.base.metrics.registry import Metrics
from appliance.base.wire.pool import ConnectionPool
from appliance.base.wire.types import PoolLimits
from appliance.engines.backends.contract import BackendCallbacks
from appliance.engines.backends.server import EngineServer
from appliance.engines.dialects.contract import EngineFacts, EngineHealth, QueryReply
from appliance.engines.receipts import Receipt
from appliance.engines.settings import EngineSettings
from appliance.engines.specs import BackendSpec
from appliance.engines.types import EngineRequest, ModelCard, Operation, ServedModel


def server_at(
    url: str = "http://127.0.0.1:1",
    *,
    kind: str = "vllm",
    wire: ConnectionPool | None = None,
    clock: Clock | None = None,
    metrics: Metrics | None = None,
    callbacks: BackendCallbacks | None = None,
    spec: dict[str, Any] | None = None,
    is_up: bool = True,
    **settings: Any,
) -> EngineServer:
    """Give a server `e0` that serves the model `tiny`, and is ready unless `is_up` is False."""
    server = EngineServer(
        BackendSpec(**{"url": url, "name": "e0", "kind": kind} | (spec or {})),
        settings=EngineSettings(**settings),
        wire=wire or ConnectionPool(PoolLimits()),
        clock=clock or FakeClock(),
        metrics=metrics or Metrics(),
        callbacks=callbacks or BackendCallbacks(),
    )
    if is_up:
        server.state.update_health(EngineHealth(True))
        server.state.update_facts(EngineFacts({"tiny": served("tiny")}))
    return server


def served(name: str, *, parent: str = "", extra: tuple[tuple[str, Any], ...] = ()) -> ServedModel:
    return ServedModel(ModelCard(name, 0, "vllm", name, parent=parent), name, extra)


def chat(model: str = "tiny", *, stream: bool = False, text: str = "hello", **more: Any) -> EngineRequest:
    """Give a chat request that is routed to `model`."""
    body = {"model": model, "messages": [{"role": "user", "content": text}], "stream": stream, **more}
    return EngineRequest(
        Operation.CHAT,
        body,
        jsons.dumps(body),
        model,
        stream,
        Receipt("r1"),
        public_model=model,
        wanted_model=model,
    )


class PageClient:
    """An EngineClient over fixed pages.

    Path → (status, body), or an exception; a callable is called for each reply.
    """

    def __init__(self, pages: dict[str, Any]) -> None:
        self.pages = pages
        self.asked: list[str] = []

    async def get(self, path: str, timeout_s: float) -> QueryReply:
        self.asked.append(path)
        page = self.pages.get(path, (404, b""))
        if isinstance(page, Callable):  # type: ignore[arg-type]
            page = page()
        if isinstance(page, Exception):
            raise page
        return QueryReply(*page)

    async def post(self, path: str, body: dict[str, Any]) -> QueryReply:
        return await self.get(path, 0.0)
