"""Servers whose adapters can be loaded, in memory, and the adapter manager over them: no wire, a clock that is set."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from appliance.base.clock import FakeClock
from appliance.base.metrics.registry import Metrics
from appliance.base.tasks import Tasks
from appliance.engines.backends.server import EngineServer
from appliance.engines.dialects.contract import EngineClient, EngineFacts, EngineHealth, LoraReply
from appliance.engines.lora.manager import AdapterManager
from appliance.engines.lora.plan import Adapter
from appliance.engines.pool import Pool
from appliance.engines.router import Router
from appliance.engines.settings import EngineSettings
from appliance.engines.types import ModelCard, ServedModel
from tests.engines.servers import server_at
from tests.journeys.running import until

STYLE = Adapter("style", "/adapters/style", "tiny")
REFUSED = LoraReply("refused", 500, "out of adapter slots")
OFF = LoraReply("off", 404, "Not Found", remedy="Start it with --enable-lora.")


class ScriptedDialect:
    """A LoraDialect in memory.

    adapters   what the engine has, by name → path
    commands   the commands that it got, such as "load style"
    replies    the results of the next commands, in turn: None = carried out; an exception is raised
    """

    kind: ClassVar[str] = "vllm"
    running_metrics: ClassVar[tuple[str, ...]] = ()
    waiting_metrics: ClassVar[tuple[str, ...]] = ()
    stops_on_disconnect: ClassVar[bool] = True
    has_slots: ClassVar[bool] = False
    names_adapters: ClassVar[bool] = True

    def __init__(self, base: str = "tiny") -> None:
        self.base = base
        self.adapters: dict[str, str] = {}
        self.commands: list[str] = []
        self.replies: list[LoraReply | Exception | None] = []
        self.lists_adapters = True
        self.can_read = True

    async def probe_health(self, client: EngineClient) -> EngineHealth:
        return EngineHealth(True)

    async def matches(self, client: EngineClient) -> bool:
        return True

    async def read_facts(self, client: EngineClient) -> EngineFacts:
        if not self.can_read:
            raise ValueError("the list of models makes no sense")
        return EngineFacts(self.models())

    def models(self) -> dict[str, ServedModel]:
        models = {self.base: _served(self.base)}
        if self.lists_adapters:
            models |= {name: _served(name, self.base, path) for name, path in self.adapters.items()}
        return models

    async def load_adapter(
        self, client: EngineClient, name: str, path: str, *, is_pinned: bool = False
    ) -> LoraReply:
        reply = self._next(f"load {name}")
        if reply is None:
            self.adapters[name] = path
        return reply or LoraReply("done", 200, f"loaded {name}")

    async def unload_adapter(self, client: EngineClient, name: str, more: dict[str, Any]) -> LoraReply:
        reply = self._next(f"unload {name}")
        if reply is None and name not in self.adapters:
            reply = LoraReply("unknown", 404, f"no adapter {name}")
        if reply is None:
            del self.adapters[name]
        return reply or LoraReply("done", 200, f"unloaded {name}")

    def describe_adapter(self, base: ServedModel, name: str, path: str) -> ServedModel:
        if self.lists_adapters:
            raise ValueError(f"the engine does not list the adapter {name!r}")
        return _served(name, self.base, path)

    async def has_adapter(self, client: EngineClient, served: ServedModel) -> bool:
        return True

    def _next(self, command: str) -> LoraReply | None:
        self.commands.append(command)
        reply = self.replies.pop(0) if self.replies else None
        if isinstance(reply, Exception):
            raise reply
        return reply


def _served(name: str, parent: str = "", path: str = "") -> ServedModel:
    return ServedModel(ModelCard(name, 0, "vllm", name, parent=parent, path=path), name)


@dataclass
class LoraScene:
    """The parts, and what a test does with them. Servers are e0, e1 …"""

    servers: list[EngineServer]
    dialects: list[ScriptedDialect]
    router: Router
    manager: AdapterManager
    tasks: Tasks
    clock: FakeClock
    metrics: Metrics

    def states(self, name: str = "style") -> dict[str, str]:
        """The state of an adapter on each backend that it involves."""
        rows = {row.adapter.name: row for row in self.manager.status.rows()}
        return {one.backend: one.state for one in rows[name].backends} if name in rows else {}

    def served(self, name: str = "style") -> list[str]:
        """The servers that may be asked for a model."""
        return [server.name for server in self.servers if server.find_model(name) is not None]

    def commands(self) -> list[list[str]]:
        return [dialect.commands for dialect in self.dialects]

    def go_down(self, number: int) -> None:
        self.servers[number].state.update_health(EngineHealth(False, detail="down"))
        self.router.notify_changed()

    def come_up(self, number: int, *, keeps_adapters: bool = False) -> None:
        """Let a server start again, usually without its adapters."""
        dialect, state = self.dialects[number], self.servers[number].state
        if not keeps_adapters:
            dialect.adapters.clear()
        state.update_health(EngineHealth(True))
        state.update_facts(EngineFacts(dialect.models()))
        self.router.notify_changed()

    async def settles(self, expected: dict[str, str], name: str = "style") -> bool:
        """Wait until the states of an adapter are these."""
        return await until(lambda: self.states(name) == expected)

    async def rounds(self, count: int = 20) -> None:
        """Let the loop run."""
        for _ in range(count):
            await asyncio.sleep(0)


@asynccontextmanager
async def lora_scene(
    *bases: str, path: Path | None = None, down: tuple[int, ...] = ()
) -> AsyncIterator[LoraScene]:
    """Open a scene with one server for each of `bases`, the models that they serve; those in `down` are down."""
    clock, metrics = FakeClock(), Metrics()
    router = Router(EngineSettings(), clock=clock, metrics=metrics)
    servers, dialects = [], []
    for number, base in enumerate(bases):
        server, dialect = (
            server_at(clock=clock, spec={"name": f"e{number}"}, is_up=False),
            ScriptedDialect(base),
        )
        server.state.dialect = dialect
        servers.append(server)
        dialects.append(dialect)
    pool = Pool("default", strategy="round_robin")
    pool.backends = list(servers)
    router.set_pools([pool])
    async with Tasks() as tasks:
        manager = AdapterManager(router, tasks=tasks, clock=clock, metrics=metrics, path=path)
        scene = LoraScene(servers, dialects, router, manager, tasks, clock, metrics)
        for number in range(len(bases)):
            if number not in down:
                scene.come_up(number)
        yield scene
