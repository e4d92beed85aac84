"""The declared adapters as one backend has them: which it may be asked for, and which are being answered with.

A declared name is served only from the moment that the backend was seen to have it, in its present life: an engine that was restarted has
lost what it was told to load, and some would then let the base model answer.
"""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from appliance.base.errors import Unavailable
from appliance.engines.outcome import Outcome
from appliance.engines.types import ServedModel
from appliance.engines.upstream.exchange import AttemptFailed

CODE = "adapter_not_loaded"
# What engines say to the name of an adapter that they have not.
_SAID = ("does not exist", "not loaded", "never been loaded", "not found", "unknown lora", "unknown adapter")


class AdapterNotLoaded(Unavailable):
    """A declared adapter that no backend has at the moment. `is_coming`: one is about to have it."""

    default_code = CODE
    is_coming = False


@dataclass(frozen=True, slots=True)
class LoadedAdapter:
    """An adapter that the backend has. `engine_name`: how it lists it; `is_listed`: whether it did, so that a list without it means a loss."""

    served: ServedModel
    engine_name: str
    is_listed: bool


class AdapterState:
    """One per backend. `version` rises with each change of ours: a list of models that was asked for before one is not believed."""

    def __init__(self) -> None:
        self.declared: frozenset[str] = (
            frozenset()
        )  # declared for this backend, or about to be: served only once it has them
        self.loaded: Mapping[str, LoadedAdapter] = {}
        self.version = 0
        self.on_lost: Callable[[str], None] = lambda _name: None  # somebody should load it again
        self._in_use: dict[Any, str] = {}  # by place
        self._ended = asyncio.Event()

    def apply_to(self, models: dict[str, ServedModel]) -> dict[str, ServedModel]:
        """Give what may be served: the models, less the declared ones that it has not, and those that it has."""
        if not self.declared and not self.loaded:
            return models
        return {name: served for name, served in models.items() if name not in self.declared} | {
            name: own.served for name, own in self.loaded.items()
        }

    def declare(self, names: frozenset[str]) -> bool:
        """Say which names are declared for it; give whether that changed anything."""
        changed = names != self.declared
        self.declared = names
        return changed

    def add(self, name: str, own: LoadedAdapter) -> None:
        """It was seen to have this one."""
        self.version += 1
        self.loaded = {**self.loaded, name: own}

    def remove(self, name: str) -> None:
        self.version += 1
        self.loaded = {key: own for key, own in self.loaded.items() if key != name}

    def clear(self) -> None:
        """Its engine went: whatever comes back has none of them."""
        self.version += 1
        self.loaded = {}

    def update_from(self, models: Mapping[str, ServedModel]) -> None:
        """Take a list of what it serves, asked for after the latest change."""
        for name, own in self.loaded.items():
            listed = models.get(own.engine_name)
            if listed is not None:
                self.loaded = {
                    **self.loaded,
                    name: LoadedAdapter(renamed(listed, name), own.engine_name, True),
                }
            elif own.is_listed:
                self.remove(name)
                self.on_lost(name)

    def report_missing(self, name: str) -> bool:
        """A request met a missing adapter. Give whether it was one of these."""
        if name not in self.declared:
            return False
        if name in self.loaded:
            self.remove(name)
            self.on_lost(name)
        return True

    # ---- in use

    def acquire(self, name: str, slot: Any) -> None:
        if name in self.declared:
            self._in_use[slot] = name

    def release(self, slot: Any) -> None:
        if self._in_use.pop(slot, None) is not None:
            self._ended.set()

    async def wait_unused(self, name: str, patience_s: float) -> None:
        """Wait until no answer is made with it any more, but not for ever."""
        try:
            async with asyncio.timeout(patience_s):
                while name in self._in_use.values():
                    self._ended.clear()
                    await self._ended.wait()
        except TimeoutError:
            pass


def renamed(served: ServedModel, name: str) -> ServedModel:
    """Give the same adapter under another name; a name `base:adapter` that it is asked by stays."""
    if served.card.id == name:
        return served
    return replace(served, card=replace(served.card, id=name, aliases=()))


def is_missing(status: int, text: str) -> bool:
    """Whether an engine's error answer to a request for an adapter means that it has no such adapter."""
    said = text.lower()
    return status == 404 or (
        status in {400, 422, 500}
        and ("lora" in said or "adapter" in said or "model" in said)
        and any(words in said for words in _SAID)
    )


def missing(name: str, backend: str, *, note: str = "", status: int | None = None) -> AttemptFailed:
    """Give what it means for a request: another backend may have the adapter, and this one will soon again."""
    return AttemptFailed(
        Outcome.ADAPTER_MISSING,
        note,
        status=status,
        error=not_loaded(name, f"{backend} has lost it"),
    )


def not_loaded(name: str, why: str) -> AdapterNotLoaded:
    return AdapterNotLoaded(
        f"The adapter {name[:200]!r} is declared, but no backend has it loaded at the moment: {why}.",
        retry_after_s=2,
    )
