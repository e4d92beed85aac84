"""Those who can have adapters, as engines/lora/adapters.py deals with them: servers that are told, and the model manager, whose llama-servers are
started anew."""

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from appliance.base.errors import ApplianceError, Conflict, Invalid, NotFound, Unavailable, UpstreamFailed
from appliance.base.wire.types import UpstreamTimeout, WireError
from appliance.engines.backends.adapters import AdapterState, LoadedAdapter, rename_model
from appliance.engines.backends.managed import ManagedBackend, served_adapters
from appliance.engines.backends.server import EngineServer
from appliance.engines.dialects.contract import LoraDialect, LoraReply
from appliance.engines.lora.plan import Adapter, HostView
from appliance.engines.lora.rules import adapter_file
from appliance.engines.types import BackendStatus, ModelCard
from appliance.models.manager.manager import ModelManager
from appliance.models.table.catalogue import LoraAdapter
from appliance.models.table.gguf import InvalidGguf, read_header

DRAIN_S = 30.0  # answers that are being made with an adapter get so long before it is unloaded


class AdapterHost(Protocol):
    """One of them. `lock`: one thing at a time is told to it."""

    name: str
    adapters: AdapterState
    lock: asyncio.Lock

    def view(self) -> HostView: ...

    def is_coming(self) -> bool:
        """Whether it will be there soon, or is."""
        ...

    async def load(self, adapter: Adapter, *, is_tried: bool) -> LoraReply:
        """Load it; `is_tried`: see that it works. Raises ApplianceError: it does not have it now · WireError"""
        ...

    async def unload(self, adapter: Adapter, more: dict[str, Any]) -> LoraReply:
        """Unload it. Raises as `load` does."""
        ...

    def own(self, adapter: Adapter, said: LoraReply) -> LoadedAdapter: ...

    def settle(self) -> None:
        """What it has, or may serve, changed."""
        ...


class ServerHost:
    """A server that the operator runs."""

    def __init__(self, server: EngineServer) -> None:
        self.server, self.name, self.adapters, self.lock = (
            server,
            server.name,
            server.models.adapters,
            asyncio.Lock(),
        )

    def view(self) -> HostView:
        server = self.server
        models = server.models.facts.models
        listed = {name: served.card.path for name, served in models.items() if served.card.parent}
        bases = frozenset(
            [
                *(name for name in models if name not in listed),
                *(name for name in server.spec.models if name not in listed),
            ]
        )
        loads = isinstance(server.state.dialect, LoraDialect)
        return HostView(
            self.name,
            server.kind,
            server.state.health.is_ready and server.models.is_current,
            bases - frozenset(self.adapters.loaded),
            frozenset(self.adapters.loaded),
            listed,
            loads,
        )

    def is_coming(self) -> bool:
        server = self.server
        return server.state.health.is_ready or server.describe().standing == BackendStatus.STARTING.value

    async def load(self, adapter: Adapter, *, is_tried: bool) -> LoraReply:
        dialect, server = self._dialect(), self.server
        said = await dialect.load_adapter(
            server.client, adapter.name, adapter.path, is_pinned=adapter.is_pinned
        )
        if said.is_loaded:
            await self._learn()
        return said

    async def _learn(self) -> None:
        """Ask again what it serves: a list from before is out of date."""
        server = self.server
        self.adapters.version += 1
        try:
            assert server.state.dialect is not None
            server.state.update_facts(await server.state.dialect.read_facts(server.client))
        except (WireError, ValueError):  # with the next look, then
            server.models.is_current = False
            server.state.probe_soon()

    async def unload(self, adapter: Adapter, more: dict[str, Any]) -> LoraReply:
        server, was_held = self.server, adapter.name in self.adapters.loaded
        if was_held:
            self.adapters.remove(adapter.name)  # no new request gets it
            self.settle()
            await self.adapters.wait_unused(adapter.name, DRAIN_S)
        said = await self._dialect().unload_adapter(server.client, adapter.name, more)
        if (
            was_held and said.outcome == "off"
        ):  # what it was started with it keeps; requests for its model do not meet it
            said = LoraReply("done", 200, f"The adapter {adapter.name!r} is declared no longer. {said.text}")
        if said.is_unloaded:
            server.models.facts = replace(
                server.models.facts,
                models={
                    name: one for name, one in server.models.facts.models.items() if name != adapter.name
                },
            )
            await self._learn()
        return said

    def own(self, adapter: Adapter, said: LoraReply) -> LoadedAdapter:
        engine_name, models = said.engine_name or adapter.name, self.server.models.facts.models
        listed = models.get(engine_name)
        if listed is not None:
            return LoadedAdapter(rename_model(listed, adapter.name), engine_name, True)
        base = models.get(adapter.base_model) or self.server.find_model(adapter.base_model)
        assert base is not None  # else it would not fit
        return LoadedAdapter(
            self._dialect().describe_adapter(base, adapter.name, adapter.path), engine_name, False
        )

    def settle(self) -> None:
        self.server.state.refresh_models()

    def _dialect(self) -> LoraDialect:
        dialect = self.server.state.dialect
        if not isinstance(dialect, LoraDialect):
            raise Conflict(
                f"The backend {self.name} ({self.server.kind}) cannot be told to load adapters.",
                code="lora_not_enabled",
            )
        return dialect


class ManagedHost:
    """The models that the appliance runs itself. An adapter comes or goes by a planned restart of its model's llama-servers."""

    def __init__(self, managed: ManagedBackend) -> None:
        self.managed, self.name, self.adapters, self.lock = (
            managed,
            managed.name,
            managed.adapters,
            asyncio.Lock(),
        )

    def view(self) -> HostView:
        return HostView(
            self.name,
            "managed",
            True,
            frozenset(self.managed.manager.model_states),
            frozenset(self.adapters.loaded),
        )

    def is_coming(self) -> bool:
        return True

    async def load(self, adapter: Adapter, *, is_tried: bool) -> LoraReply:
        """A model that fails with the adapter is put back as it was: its own requests must not suffer for it."""
        manager, alias = self.managed.manager, adapter.base_model
        path = await asyncio.to_thread(managed_file, manager, adapter)
        former, wanted = manager.adapters.get(alias, ()), LoraAdapter(path, 0.0, adapter.name)
        if wanted not in former:  # at its place in the list it stays: that is what requests name it by
            manager.set_adapters(alias, (*(one for one in former if one.name != adapter.name), wanted))
        if is_tried:
            try:
                await manager.load(alias)
            except BaseException:
                manager.set_adapters(alias, former)
                raise
        return LoraReply("done", 200, f"The model {alias!r} is run with the adapter {adapter.name!r}.")

    async def unload(self, adapter: Adapter, more: dict[str, Any]) -> LoraReply:
        manager, alias = self.managed.manager, adapter.base_model
        former = manager.adapters.get(alias, ())
        if not any(one.name == adapter.name for one in former):
            return LoraReply("unknown", 404, f"No model here has an adapter {adapter.name!r}.")
        self.adapters.remove(adapter.name)
        self.settle()
        if alias in manager.model_states:  # its running answers end first: see set_adapters
            manager.set_adapters(alias, tuple(one for one in former if one.name != adapter.name))
        return LoraReply("done", 200, f"The model {alias!r} is run without the adapter {adapter.name!r}.")

    def own(self, adapter: Adapter, said: LoraReply) -> LoadedAdapter:
        entry = self.managed.manager.model_state(adapter.base_model)
        base = self.managed.find_model(adapter.base_model)
        card = base.card if base is not None else ModelCard(adapter.base_model, 0, "user", adapter.base_model)
        return LoadedAdapter(served_adapters(entry.model, card)[adapter.name], adapter.name, True)

    def settle(self) -> None:
        self.adapters.version += 1
        self.managed.callbacks.on_models()


def managed_file(manager: ModelManager, adapter: Adapter) -> Path:
    """Give the file of an adapter for a model that the appliance runs, looked into (blocks).

    Raises  Invalid: it is not there, cannot be read, or is for other models
    """
    path = adapter_file(Path(adapter.path))
    if path.suffix.lower() != ".gguf":
        return path
    entry = manager.model_state(adapter.base_model)
    try:
        header = read_header(path)
        wanted = (entry.header or read_header(entry.path)).architecture
    except (OSError, InvalidGguf) as exc:
        raise Invalid(
            f"The adapter {path} cannot be read: {exc}.", param="lora_path", code="adapter_unusable"
        ) from None
    if header.kind != "adapter" or header.architecture != wanted:
        raise Invalid(
            f"{path} is of the kind {header.kind} for models of the architecture {header.architecture}; the model "
            f"{adapter.base_model!r} takes adapters for {wanted}.",
            param="lora_path",
            code="adapter_unusable",
        )
    return path


def refusal(said: LoraReply, backend: str, name: str) -> ApplianceError:
    """Give the error for what an engine did not do. Its own answer is in the details: `engine_status`, `engine_text`."""
    details: dict[str, Any] = {"engine_status": said.status, "engine_text": said.text, "backend": backend}
    sentence = f"The backend {backend} says to the adapter {name!r} ({said.status}): {said.text[:500]}"
    if said.outcome == "off":
        return Conflict(
            f"The backend {backend} loads no adapters as it was started. {said.remedy} It says ({said.status}): {said.text[:300]}",
            code="lora_not_enabled",
            details=details,
        )
    if said.outcome == "unknown":
        return NotFound(sentence, code="no_such_adapter", details=details)
    if said.outcome == "already":
        return Conflict(sentence, code="adapter_exists", details=details)
    if said.status == 404:
        return NotFound(sentence, code="adapter_not_found", details=details)
    if said.status < 500:
        return Invalid(
            sentence,
            code="adapter_refused",
            details=details | {"status": said.status} if said.status >= 400 else details,
        )
    return UpstreamFailed(sentence, code="adapter_refused", details=details)


def unreached(error: Exception, backend: str) -> ApplianceError:
    """Give the error for an engine that could not be asked, or whose answer makes no sense."""
    if isinstance(error, ApplianceError):
        return error
    if isinstance(error, UpstreamTimeout) or (isinstance(error, WireError) and error.phase == "connect"):
        return Unavailable(
            f"The backend {backend} cannot be told: {error}", code="no_backend", retry_after_s=2
        )
    return UpstreamFailed(f"The backend {backend} cannot be told: {error}", code="adapter_refused")
