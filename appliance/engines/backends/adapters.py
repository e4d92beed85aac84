"""The adapters of one backend: which of the declared ones it has, and which are in use.

A declared name is served only after the backend was seen to have it since its start: a restarted engine has
lost the adapters that it loaded, and some engines would then let the base model answer.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from appliance.base.errors import Unavailable
from appliance.base.logs import get_logger
from appliance.engines.outcome import Outcome
from appliance.engines.types import ServedModel
from appliance.engines.upstream.attempt import AttemptFailed

log = get_logger("lora")
ADAPTER_NOT_LOADED = "adapter_not_loaded"  # the error code
# From the error texts of engines for the name of an adapter that they do not have.
_UNKNOWN_TEXTS = (
    "does not exist",
    "not loaded",
    "never been loaded",
    "not found",
    "unknown lora",
    "unknown adapter",
)


class AdapterNotLoaded(Unavailable):
    """A declared adapter that no backend has at the moment. `is_expected`: one will have it soon."""

    default_code = ADAPTER_NOT_LOADED
    is_expected = False


@dataclass(frozen=True, slots=True)
class LoadedAdapter:
    """An adapter that the backend has.

    Attributes:
        engine_name: How the engine lists it.
        is_listed: Whether it was ever listed, so that a list without it means that it was lost.
    """

    served: ServedModel
    engine_name: str
    is_listed: bool


class AdapterState:
    """The adapters of one backend.

    Attributes:
        declared: Names that are declared for it, or about to be: served only once it has them.
        loaded: The declared adapters that it has.
        version: Incremented with each change of ours: a list of models from before it is out of date.
    """

    def __init__(self, backend: str) -> None:
        self.declared: frozenset[str] = frozenset()
        self.loaded: Mapping[str, LoadedAdapter] = {}
        self.version = 0
        self._backend = backend
        self._in_use: dict[Any, str] = {}  # slot → adapter
        self._released = asyncio.Event()

    def apply_to(self, models: dict[str, ServedModel]) -> dict[str, ServedModel]:
        """Return the models that may be served: without the declared adapters that it lacks."""
        if not self.declared and not self.loaded:
            return models
        allowed = {name: served for name, served in models.items() if name not in self.declared}
        return allowed | {name: adapter.served for name, adapter in self.loaded.items()}

    def declare(self, names: frozenset[str]) -> bool:
        """Set the declared names; return whether that changed anything."""
        is_changed = names != self.declared
        self.declared = names
        return is_changed

    def add(self, name: str, adapter: LoadedAdapter) -> None:
        """Record that the backend has this one."""
        self.version += 1
        self.loaded = {**self.loaded, name: adapter}

    def remove(self, name: str) -> None:
        """Record that the backend no longer has this one."""
        self.version += 1
        self.loaded = {other: adapter for other, adapter in self.loaded.items() if other != name}

    def clear(self) -> None:
        """Record that its engine went down: a restarted one has none of them."""
        self.version += 1
        self.loaded = {}

    def update_from(self, models: Mapping[str, ServedModel]) -> None:
        """Take a list of what the engine serves, queried after the latest change.

        1. it lists an adapter              → it is requested as listed
        2. it listed it before, but not now → it is lost
        3. it never listed it               → it is assumed to be there
        """
        for name, adapter in self.loaded.items():
            listed = models.get(adapter.engine_name)
            if listed is not None:  # 1
                renamed = LoadedAdapter(rename_model(listed, name), adapter.engine_name, True)
                self.loaded = {**self.loaded, name: renamed}
            elif adapter.is_listed:  # 2
                self._lose(name)

    def report_missing(self, name: str) -> bool:
        """Record that a request did not find this one; return whether it is declared."""
        if name not in self.declared:
            return False
        if name in self.loaded:
            self._lose(name)
        return True

    def _lose(self, name: str) -> None:
        self.remove(name)
        log.warning("adapter_lost", adapter=name, backend=self._backend)

    # ---- in use

    def acquire(self, name: str, slot: Any) -> None:
        """Record that a request uses a declared adapter; other names are ignored."""
        if name in self.declared:
            self._in_use[slot] = name

    def release(self, slot: Any) -> None:
        """Record that the request of `slot` ended."""
        if self._in_use.pop(slot, None) is not None:
            self._released.set()

    async def wait_unused(self, name: str, timeout_s: float) -> None:
        """Wait until no request uses the adapter any more, for `timeout_s` at most."""
        try:
            async with asyncio.timeout(timeout_s):
                while name in self._in_use.values():
                    self._released.clear()
                    await self._released.wait()
        except TimeoutError:
            pass


def rename_model(served: ServedModel, name: str) -> ServedModel:
    """Return the same model under another name; it is requested from the engine as before."""
    if served.card.id == name:
        return served
    return replace(served, card=replace(served.card, id=name, aliases=()))


def is_adapter_missing(status: int, text: str) -> bool:
    """Whether an engine's error response to a request for an adapter means that it has no such adapter."""
    lower = text.lower()
    return status == 404 or (
        status in {400, 422, 500}
        and ("lora" in lower or "adapter" in lower or "model" in lower)
        and any(words in lower for words in _UNKNOWN_TEXTS)
    )


def adapter_missing(
    name: str, backend_label: str, *, note: str = "", status: int | None = None
) -> AttemptFailed:
    """Return the failure for an adapter that the backend does not have; another one may have it.

    Args:
        name: The adapter.
        backend_label: The backend at the start of an error text, such as "The backend llm-1".
        note: The error text of the engine.
        status: Its HTTP status; None = there was none.
    """
    return AttemptFailed(
        Outcome.ADAPTER_MISSING,
        note,
        status=status,
        error=adapter_not_loaded(name, f"{backend_label} has lost it"),
    )


def adapter_not_loaded(name: str, reason: str) -> AdapterNotLoaded:
    """Return the error for a declared adapter that no backend has."""
    return AdapterNotLoaded(
        f"The adapter {name[:200]!r} is declared, but no backend has it loaded at the moment: {reason}.",
        retry_after_s=2,
    )
