"""A model manager that does what a test says: plain values, and loads that end on demand."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from appliance.base.errors import ApplianceError, NoSuchModel
from appliance.base.watch import Watched
from appliance.models.status.views import (
    DeviceView,
    Ejected,
    FailedView,
    HealthView,
    ManagerCounts,
    ModelView,
    QueueView,
    RequestSample,
    RunnerView,
    ServerStatus,
)
from appliance.models.table.catalogue import Catalogue

GIB = 1 << 30
STARTED_AT_S = 1_800_000_000.0


def model_view(alias: str, **values: Any) -> ModelView:
    """Return a model that is off by default."""
    return ModelView(
        **{
            "alias": alias,
            "status": "off",
            "path": Path(f"/models/{alias}.gguf"),
            "context_tokens": 8192,
            "slots": 4,
            "size_bytes": 2 * GIB,
            "estimate_bytes": 3 * GIB,
            **values,
        }
    )


def ready_view(alias: str, *, expires_at_s: float | None = STARTED_AT_S + 300, **values: Any) -> ModelView:
    """Return a model that is loaded on GPU 0."""
    runner = RunnerView(
        alias,
        41000,
        4711,
        "ready",
        STARTED_AT_S,
        4,
        2,
        3.25,
        STARTED_AT_S + 5,
        expires_at_s,
        3 * GIB,
        ((0, 2 * GIB), (-1, GIB)),
        Path("/state/logs/a.log"),
    )
    return model_view(
        alias,
        **{
            "status": "ready",
            "port": 41000,
            "started_at_s": STARTED_AT_S,
            "last_used_at_s": STARTED_AT_S + 5,
            "load_progress": 100,
            "memory_bytes": 3 * GIB,
            "average_bytes": 3 * GIB,
            "load_s": 3.25,
            "loads": 1,
            "runners": (runner,),
            **values,
        },
    )


class ScriptedManager:
    """Records its calls. A load runs until the test calls `ready` or `fail`; `leave_alone` makes loads ready at once."""

    def __init__(self, *views: ModelView) -> None:
        self.views = {view.alias: view for view in views}
        self.lines = [QueueView(view.alias, 0, 0, 0, 0, 0) for view in views]
        self.changed: Watched[int] = Watched(0)
        self.catalogue = Catalogue({})
        self.log_path: Path | None = None
        self.asked: list[tuple[Any, ...]] = []
        self.failures: dict[str, FailedView] = {}
        self.places = [
            DeviceView(0, "NVIDIA H100", 80 * GIB, 5 * GIB, 75 * GIB, 12.5, 41.0, 120.0),
            DeviceView(-1, "system memory", 64 * GIB, GIB, 63 * GIB),
        ]
        self.is_quick = False
        self.load_begun = asyncio.Event()
        self.load_ended = asyncio.Event()
        self.load_was_cut = False
        self._coming: asyncio.Future[ModelView] | None = None
        self.server_status: ServerStatus = "ready"
        self.server_started_at_s = self.server_updated_at_s = STARTED_AT_S

    def put(self, view: ModelView) -> None:
        """Change a model."""
        self.views[view.alias] = view
        self.bump()

    def log_finder(self, alias: str, port: int = 0) -> Callable[[], Path | None]:
        self.asked.append(("log", alias, port))
        path = self.log_path
        return lambda: path

    def bump(self) -> None:
        self.changed.set(self.changed.value + 1)

    def ready(self, alias: str) -> None:
        """Let the load succeed."""
        view = ready_view(alias)
        self.put(view)
        assert self._coming is not None
        self._coming.set_result(view)

    def fail(self, error: ApplianceError) -> None:
        """Let the load fail."""
        assert self._coming is not None
        self._coming.set_exception(error)

    def models(self) -> list[ModelView]:
        return list(self.views.values())

    def model(self, alias: str) -> ModelView:
        if alias not in self.views:
            raise NoSuchModel(f"There is no model {alias!r}.", param="model")
        return self.views[alias]

    def queues(self) -> list[QueueView]:
        return self.lines

    def devices(self) -> list[DeviceView]:
        return self.places

    def failed_models(self) -> list[FailedView]:
        return list(self.failures.values())

    def health(self) -> list[HealthView]:
        return []

    def telemetry(self) -> list[RequestSample]:
        return []

    def counts(self) -> ManagerCounts:
        return ManagerCounts()

    async def load(self, alias: str, *, keep_alive_s: float | None = None) -> ModelView:
        self.asked.append(("load", alias, keep_alive_s))
        if self.is_quick:
            self.put(ready_view(alias))
            return self.views[alias]
        self._coming = asyncio.get_running_loop().create_future()
        self.load_begun.set()
        try:
            return await self._coming
        except asyncio.CancelledError:
            self.load_was_cut = True
            raise
        finally:
            self.load_ended.set()

    async def eject(self, alias: str, *, force: bool = False) -> Ejected:
        self.asked.append(("eject", alias, force))
        view = self.model(alias)
        self.put(model_view(alias))
        return Ejected(alias, bool(view.runners), sum(runner.active for runner in view.runners))

    def set_keep_alive(self, alias: str, keep_alive_s: float) -> None:
        self.asked.append(("expire", alias, keep_alive_s))

    def reset(self, alias: str) -> FailedView | None:
        self.asked.append(("reset", alias))
        if (found := self.failures.pop(alias, None)) is not None:
            self.put(model_view(alias))
        return found

    def pin(self, alias: str, *, pinned: bool = True) -> ModelView:
        self.asked.append(("pin", alias, pinned))
        self.put(replace(self.model(alias), is_pinned=pinned))
        return self.views[alias]
