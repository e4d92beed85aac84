"""A manager of plain values for Ollama's handlers: it runs nothing, but load and eject change its views; it records calls."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from appliance.base.clock import FakeClock
from appliance.base.errors import ApplianceError, NoSuchModel
from appliance.base.watch import Watched
from appliance.models.status.views import Ejected, ModelView, RunnerView
from appliance.models.table.catalogue import Catalogue, Model
from appliance.models.table.entries import Params, System

GIB = 1 << 30
LOAD_S = 2.5


def runner(alias: str, **values: Any) -> RunnerView:
    return RunnerView(
        **{
            "alias": alias,
            "port": 8085,
            "pid": 4711,
            "status": "ready",
            "started_at_s": 1_800_000_000.0,
            "slots": 4,
            "active": 0,
            **values,
        }
    )


@dataclass
class FakeManager:
    """What the handlers need of the manager, and no more."""

    clock: FakeClock
    catalogue: Catalogue = field(default_factory=lambda: Catalogue({}, System(cpu_threads=6)))
    views: dict[str, ModelView] = field(default_factory=dict)
    asked: list[tuple[Any, ...]] = field(default_factory=list)
    refuses: ApplianceError | None = None
    changed: Watched[int] = field(default_factory=lambda: Watched(0))

    def put(
        self, path: Path, *, alias: str = "", params: dict[str, Any] | None = None, **values: Any
    ) -> None:
        """Add a model to the table, off by default."""
        alias = alias or path.stem
        model = Model(alias, path, Params(**(params or {})), "table")
        self.catalogue = replace(self.catalogue, models={**self.catalogue.models, alias: model})
        self.views[alias] = ModelView(
            **{
                "alias": alias,
                "status": "off",
                "path": path,
                "context_tokens": model.params.n_ctx,
                "slots": 1,
                "size_bytes": 123,
                "estimate_bytes": 3 * GIB,
                **values,
            }
        )

    def models(self) -> list[ModelView]:
        return list(self.views.values())

    def model(self, alias: str) -> ModelView:
        if alias not in self.views:
            raise NoSuchModel(f"The model {alias!r} is not in the table.")
        return self.views[alias]

    async def load(self, alias: str, *, keep_alive_s: float | None = None) -> ModelView:
        self.asked.append(("load", alias, keep_alive_s))
        view = self.model(alias)
        if self.refuses is not None:
            raise self.refuses
        if view.status != "ready":
            self.clock.advance(LOAD_S)
            stays_s = 300.0 if keep_alive_s is None else keep_alive_s
            expires_at_s = None if stays_s < 0 else self.clock.now_s() + stays_s
            view = self.views[alias] = replace(
                view, status="ready", runners=(runner(alias, expires_at_s=expires_at_s, memory_bytes=GIB),)
            )
        return view

    async def eject(self, alias: str, *, force: bool = False) -> Ejected:
        self.asked.append(("eject", alias))
        view = self.model(alias)
        self.views[alias] = replace(view, status="off", runners=())
        return Ejected(alias, view.status == "ready")
