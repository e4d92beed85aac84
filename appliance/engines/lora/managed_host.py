"""Adapters on the models that the appliance runs itself.

To load or unload one, the llama-servers of its model are restarted.
"""

import asyncio
from pathlib import Path
from typing import Any

from appliance.base.errors import ApplianceError, Invalid
from appliance.base.logs import get_logger
from appliance.engines.backends.adapters import LoadedAdapter
from appliance.engines.backends.managed import MANAGED_BACKEND, ManagedBackend, served_adapters
from appliance.engines.dialects.contract import LoraReply
from appliance.engines.lora.plan import Adapter, HostView
from appliance.engines.lora.rules import find_adapter_file
from appliance.engines.types import ModelCard
from appliance.models.manager.manager import ModelManager
from appliance.models.table.catalogue import LoraAdapter
from appliance.models.table.gguf import InvalidGguf, read_header

log = get_logger("lora")


class ManagedHost:
    """The models of the model manager, see `AdapterHost`."""

    def __init__(self, managed: ManagedBackend) -> None:
        self.managed = managed
        self.name = managed.name
        self.adapters = managed.adapters
        self.lock = asyncio.Lock()

    def view(self) -> HostView:
        """Return the state of it that decisions need."""
        return HostView(
            self.name,
            "managed",
            is_up=True,
            bases=frozenset(self.managed.manager.model_states),
            loaded=frozenset(self.adapters.loaded),
        )

    def is_expected(self) -> bool:
        """Return True: the model manager is always up."""
        return True

    async def load(self, adapter: Adapter, *, is_verified: bool) -> LoraReply:
        """Restart the model with the adapter (see `AdapterHost.load`).

        If the model does not start with it, the former adapters are restored: its own requests must not fail.
        """
        manager, alias = self.managed.manager, adapter.base_model
        path = await asyncio.to_thread(check_adapter_file, manager, adapter)
        former, wanted = manager.adapters.get(alias, ()), LoraAdapter(path, 0.0, adapter.name)
        if wanted not in former:  # else it keeps its place in the list, by which requests name it
            manager.set_adapters(alias, (*(one for one in former if one.name != adapter.name), wanted))
        if is_verified:
            try:
                await manager.load(alias)
            except BaseException:
                manager.set_adapters(alias, former)
                raise
        return LoraReply("done", 200, f"The model {alias!r} runs with the adapter {adapter.name!r}.")

    async def unload(self, adapter: Adapter, more: dict[str, Any]) -> LoraReply:
        """Restart the model without the adapter, after its running requests (see `AdapterHost.unload`)."""
        manager, alias = self.managed.manager, adapter.base_model
        former = manager.adapters.get(alias, ())
        if not any(one.name == adapter.name for one in former):
            return LoraReply("unknown", 404, f"No model here has an adapter {adapter.name!r}.")
        self.adapters.remove(adapter.name)
        self.refresh()
        if alias in manager.model_states:
            manager.set_adapters(alias, tuple(one for one in former if one.name != adapter.name))
        return LoraReply("done", 200, f"The model {alias!r} runs without the adapter {adapter.name!r}.")

    def describe_loaded(self, adapter: Adapter, reply: LoraReply) -> LoadedAdapter:
        """Return how an adapter is requested that its model was started with."""
        model_state = self.managed.manager.model_state(adapter.base_model)
        base = self.managed.find_model(adapter.base_model)
        card = base.card if base is not None else ModelCard(adapter.base_model, 0, "user", adapter.base_model)
        return LoadedAdapter(served_adapters(model_state.definition, card)[adapter.name], adapter.name, True)

    def refresh(self) -> None:
        """Combine again what the models serve."""
        self.adapters.version += 1
        self.managed.callbacks.on_models()


def prepare_models(manager: ModelManager, adapters: list[Adapter]) -> None:
    """Let the manager's models start with their declared adapters; called before any is started (blocks).

    A model whose adapter cannot be used starts without it.
    """
    for alias in manager.model_states:
        found = []
        for adapter in adapters:
            if adapter.is_wanted and adapter.base_model == alias and adapter.backend in {"", MANAGED_BACKEND}:
                try:
                    found.append(LoraAdapter(check_adapter_file(manager, adapter), 0.0, adapter.name))
                except ApplianceError as error:
                    log.error("adapter_unusable", adapter=adapter.name, model=alias, reason=error.message)
        manager.set_adapters(alias, tuple(found))


def check_adapter_file(manager: ModelManager, adapter: Adapter) -> Path:
    """Return the file of an adapter for a model of the manager, once its header was checked (blocks).

    Raises:
        Invalid: It is missing, cannot be read, or is for another kind of model.
    """
    path = find_adapter_file(Path(adapter.path))
    if manager.model_state(adapter.base_model).definition.engine is not None:
        raise _unusable(
            f"The model {adapter.base_model!r} runs by a command of the table: name its adapters there."
        )
    if path.suffix.lower() != ".gguf":
        return path
    model_state = manager.model_state(adapter.base_model)
    try:
        header = read_header(path)
        wanted = (model_state.header or read_header(model_state.path or Path())).architecture
    except (OSError, InvalidGguf) as exc:
        raise _unusable(f"Cannot read the adapter {path}: {exc}.") from None
    if header.kind != "adapter" or header.architecture != wanted:
        raise _unusable(
            f"{path} is a GGUF file of kind {header.kind!r} and architecture {header.architecture!r}; the "
            f"model {adapter.base_model!r} needs an adapter of architecture {wanted!r}."
        )
    return path


def _unusable(message: str) -> Invalid:
    return Invalid(message, param="lora_path", code="adapter_unusable")
