"""Servers and requests for tests of what is known of a server, and of one attempt at it."""

from typing import Any

from appliance.base import jsons
from appliance.base.clock import Clock, FakeClock
from appliance.base.metrics.registry import Metrics
from appliance.base.wire.pool import ConnectionPool
from appliance.base.wire.types import PoolLimits
from appliance.engines.backends.contract import BackendCallbacks
from appliance.engines.backends.server import EngineServer
from appliance.engines.dialects.contract import EngineFacts, EngineHealth
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
    """Return a server `e0` that serves the model `tiny`, and is ready unless `is_up` is False."""
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
    """Return a chat request that is routed to `model`."""
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
