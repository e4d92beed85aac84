"""Adapters on a server that the operator runs: loaded and unloaded by the commands of its dialect."""

import asyncio
from dataclasses import replace
from typing import Any

from appliance.base.errors import Conflict
from appliance.base.wire.types import WireError
from appliance.engines.backends.adapters import LoadedAdapter, rename_model
from appliance.engines.backends.server import EngineServer
from appliance.engines.dialects.contract import LoraDialect, LoraReply
from appliance.engines.lora.plan import Adapter, HostView
from appliance.engines.types import BackendStatus

DRAIN_TIMEOUT_S = 30.0  # for the running requests of an adapter before it is unloaded


class ServerHost:
    """One server of an engine, see `AdapterHost`."""

    def __init__(self, server: EngineServer) -> None:
        self.server = server
        self.name = server.name
        self.adapters = server.models.adapters
        self.lock = asyncio.Lock()

    def view(self) -> HostView:
        """Return the state of it that decisions need."""
        server, dialect = self.server, self.server.state.dialect
        models = server.models.facts.models
        listed = {name: served.card.path for name, served in models.items() if served.card.parent}
        bases = {name for name in (*models, *server.spec.models) if name not in listed}
        return HostView(
            self.name,
            server.kind,
            is_up=server.state.health.is_ready and server.models.is_current,
            bases=frozenset(bases - self.adapters.loaded.keys()),
            loaded=frozenset(self.adapters.loaded),
            listed=listed,
            can_load=isinstance(dialect, LoraDialect),
            names_adapters=dialect is None or dialect.names_adapters,
        )

    def is_expected(self) -> bool:
        """Whether it is up, or expected to be up soon."""
        state = self.server.state
        return state.health.is_ready or state.status(state.now_s()) is BackendStatus.STARTING

    async def load(self, adapter: Adapter, *, is_verified: bool) -> LoraReply:
        """Load an adapter (see `AdapterHost.load`): the engine's own reply says whether it works."""
        dialect = self._dialect()
        reply = await dialect.load_adapter(
            self.server.client, adapter.name, adapter.path, is_pinned=adapter.is_pinned
        )
        if reply.is_loaded:
            await self._read_facts()
        return reply

    async def unload(self, adapter: Adapter, more: dict[str, Any]) -> LoraReply:
        """Unload an adapter, once no request uses it any more (see `AdapterHost.unload`).

        An engine that cannot unload keeps what it was started with: the adapter is then no longer declared,
        and requests for its base model do not use it.
        """
        server, was_loaded = self.server, adapter.name in self.adapters.loaded
        if was_loaded:
            self.adapters.remove(adapter.name)  # no new request gets it
            self.refresh()
            await self.adapters.wait_unused(adapter.name, DRAIN_TIMEOUT_S)
        reply = await self._dialect().unload_adapter(server.client, adapter.name, more)
        if was_loaded and reply.outcome == "off":
            reply = LoraReply(
                "done", 200, f"The adapter {adapter.name!r} is no longer declared. {reply.text}"
            )
        if reply.is_unloaded:
            models = {name: one for name, one in server.models.facts.models.items() if name != adapter.name}
            server.models.facts = replace(server.models.facts, models=models)
            await self._read_facts()
        return reply

    def describe_loaded(self, adapter: Adapter, reply: LoraReply) -> LoadedAdapter:
        """Return how an adapter is requested that was loaded (see `AdapterHost.describe_loaded`)."""
        engine_name, models = reply.engine_name or adapter.name, self.server.models.facts.models
        listed = models.get(engine_name)
        if listed is not None:
            return LoadedAdapter(rename_model(listed, adapter.name), engine_name, True)
        base = models.get(adapter.base_model) or self.server.find_model(adapter.base_model)
        assert base is not None  # else this server would be no target of the adapter
        served = self._dialect().describe_adapter(base, adapter.name, adapter.path)
        return LoadedAdapter(served, engine_name, False)

    def refresh(self) -> None:
        """Combine again what the server serves."""
        self.server.state.refresh_models()

    async def _read_facts(self) -> None:
        """Query its facts: those from before the command are out of date."""
        server = self.server
        self.adapters.version += 1
        try:
            assert server.state.dialect is not None
            server.state.update_facts(await server.state.dialect.read_facts(server.client))
        except (WireError, ValueError):  # the next probe reads them
            server.models.is_current = False
            server.state.probe_soon()

    def _dialect(self) -> LoraDialect:
        dialect = self.server.state.dialect
        if not isinstance(dialect, LoraDialect):
            raise Conflict(
                f"The backend {self.name} ({self.server.kind}) cannot load adapters at run time.",
                code="lora_not_enabled",
            )
        return dialect
