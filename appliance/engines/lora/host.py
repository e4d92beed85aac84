"""The contract of a host: one backend as the adapter manager commands it."""

import asyncio
from typing import Any, Protocol

from appliance.engines.backends.adapters import AdapterState, LoadedAdapter
from appliance.engines.dialects.contract import LoraReply
from appliance.engines.lora.plan import Adapter, HostView


class AdapterHost(Protocol):
    """A backend that can have adapters.

    Attributes:
        adapters: What it may serve of the declared ones, and what is in use.
        lock: One command at a time.
    """

    name: str
    adapters: AdapterState
    lock: asyncio.Lock

    def view(self) -> HostView:
        """Return the state of it that decisions need."""
        ...

    def is_expected(self) -> bool:
        """Whether it is up, or expected to be up soon."""
        ...

    async def load(self, adapter: Adapter, *, is_verified: bool) -> LoraReply:
        """Load an adapter.

        Args:
            is_verified: Return only when the backend works with it; False = it may fail later.

        Raises:
            ApplianceError: The backend cannot be reached, or does not have it now.
            ValueError: Its reply is invalid.
        """
        ...

    async def unload(self, adapter: Adapter, more: dict[str, Any]) -> LoraReply:
        """Unload an adapter; `more` are the client's further fields for the engine. Raises as `load` does."""
        ...

    def describe_loaded(self, adapter: Adapter, reply: LoraReply) -> LoadedAdapter:
        """Return how an adapter is requested after `load` returned `reply`.

        Raises:
            ValueError: The engine should list it, and does not.
        """
        ...

    def refresh(self) -> None:
        """Combine again what the backend serves: its adapters, or the declared names, changed."""
        ...
