"""The readings of an appliance that runs no models: none, the memory that there is, a server that is ready.

So the addresses of the model manager answer alike everywhere, and a feed begins with an empty table.
"""

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from appliance.base.clock import Clock
from appliance.base.errors import NoSuchModel
from appliance.base.watch import Watched
from appliance.models.runner.vram import Memory
from appliance.models.status.views import (
    DeviceView,
    Ejected,
    FailedView,
    HealthView,
    ManagerCounts,
    ModelView,
    QueueView,
    RequestSample,
    ServerStatus,
)
from appliance.models.table.catalogue import Catalogue
from appliance.models.table.entries import System

REMEDY = (
    "This appliance runs no models itself. Set MODEL_DIR to a folder of .gguf files, or list models in the "
    "file of CONFIG_PATH."
)


class NoModels:
    """Implements ModelManagerApi without a model.

    Args:
        memory: What models would be loaded into.
        system: The section `system` of the configuration file.
        clock: The time of the start.
    """

    def __init__(self, memory: Memory, *, system: System, clock: Clock) -> None:
        self.changed = Watched(0)
        self.catalogue = Catalogue({}, system)
        self.server_status: ServerStatus = "ready"
        self.server_started_at_s = self.server_updated_at_s = clock.now_s()
        self._memory = memory
        self._clock = clock
        self._devices: list[DeviceView] = []

    async def measure(self) -> None:
        """Read the memory, in a thread: a failing driver may block."""
        self._devices = await asyncio.to_thread(self._memory.read)

    def announce_shutdown(self) -> None:
        """Tell followers that the appliance is shutting down."""
        self.server_status = "shutting_down"
        self.server_updated_at_s = self._clock.now_s()
        self.changed.set(self.changed.value + 1)

    # ---- readings, see ModelManagerApi

    def models(self) -> list[ModelView]:
        """Return none."""
        return []

    def model(self, alias: str) -> ModelView:
        """Raise NoSuchModel."""
        self._refuse(alias)

    def log_finder(self, alias: str, port: int = 0) -> Callable[[], Path | None]:
        """Raise NoSuchModel."""
        self._refuse(alias)

    def queues(self) -> list[QueueView]:
        """Return none."""
        return []

    def devices(self) -> list[DeviceView]:
        """List the devices that models would be loaded into, as they were measured last."""
        return self._devices

    def failed_models(self) -> list[FailedView]:
        """Return none."""
        return []

    def health(self) -> list[HealthView]:
        """Return none."""
        return []

    def telemetry(self) -> Sequence[RequestSample]:
        """Return none."""
        return []

    def counts(self) -> ManagerCounts:
        """Return zeros."""
        return ManagerCounts()

    # ---- verbs

    async def load(self, alias: str, *, keep_alive_s: float | None = None) -> ModelView:
        """Raise NoSuchModel."""
        self._refuse(alias)

    async def eject(self, alias: str, *, force: bool = False) -> Ejected:
        """Raise NoSuchModel."""
        self._refuse(alias)

    def set_keep_alive(self, alias: str, keep_alive_s: float) -> None:
        """Raise NoSuchModel."""
        self._refuse(alias)

    def reset(self, alias: str) -> FailedView | None:
        """Raise NoSuchModel."""
        self._refuse(alias)

    def pin(self, alias: str, *, pinned: bool = True) -> ModelView:
        """Raise NoSuchModel."""
        self._refuse(alias)

    def _refuse(self, alias: str) -> NoReturn:
        raise NoSuchModel(f"There is no model {alias[:200]!r} in the table. {REMEDY}", param="model")
