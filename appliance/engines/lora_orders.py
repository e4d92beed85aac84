"""Adapters as callers order them: names and paths are checked, what has a source is downloaded first, then it is loaded (lora.py)."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from appliance.base.clock import Clock
from appliance.base.errors import ApplianceError, Conflict, Internal, Invalid, Unsupported
from appliance.base.logs import get_logger
from appliance.base.tasks import Tasks
from appliance.engines.lora import Adapters, Changed
from appliance.engines.lora_plan import Adapter
from appliance.engines.lora_rules import check_name, check_path, folder_name, shown_source
from appliance.models.fetching import DEFAULT_WORKERS, Downloader, Progress, Wish

log = get_logger("lora")
KEPT_FAILURES = 100


@dataclass(frozen=True, slots=True)
class Order:
    """One adapter that is to be loaded.

    path         where it lies; source: where it is downloaded from, "" = it is there; then output_dir: where to ("" = our own folder)
    base_model   "" = the only one that there is; backend: the only one that is to have it, "" = all of the base model
    is_partial   one backend that has it is enough
    config       of the download: see models/fetching.Wish; it may hold credentials
    """

    name: str
    path: str = ""
    source: str = ""
    output_dir: str = ""
    base_model: str = ""
    backend: str = ""
    is_pinned: bool = False
    is_partial: bool = False
    max_workers: int = DEFAULT_WORKERS
    config: Mapping[str, str] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True)
class Pending:
    """An order under way, or the latest one of its name that came to nothing. `phase`: downloading, loading or failed; times since 1970."""

    name: str
    source: str
    path: str
    phase: str
    since_s: float
    error: str = ""
    progress: Progress | None = None


class Orders:
    """Takes orders, at once or in the background.

    Takes   downloader: None = nothing can be downloaded here; folders: where adapters may lie; own_folder: where they are downloaded to
            when the caller names no other
    """

    def __init__(self, adapters: Adapters, *, downloader: Downloader | None, folders: Sequence[Path], own_folder: Path, tasks: Tasks,
                 clock: Clock) -> None:
        self.adapters = adapters
        self.pending: dict[str, Pending] = {}
        self._downloader, self._folders, self._own_folder, self._tasks, self._clock = downloader, tuple(folders), own_folder, tasks, clock

    async def load(self, order: Order) -> Changed:
        """Download it where it has a source, and load it; a caller that leaves ends a download, but not a load.

        Raises  Invalid · Forbidden: the path · Unsupported: nothing can be downloaded · what Downloader.download and Adapters.load raise
        """
        return await self._done(*self._checked(order))

    def begin(self, order: Order) -> Adapter:
        """The same in the background; what comes of it, `pending` tells, and then the list of adapters.

        Raises  what can be said without downloading anything
        """
        order, adapter = self._checked(order)
        self._note(order, adapter, "downloading" if order.source else "loading")
        self._tasks.start(self._quietly(order, adapter), name=f"lora-order-{order.name}")
        return adapter

    async def unload(self, name: str, *, partial: bool = False, more: dict[str, object] | None = None) -> Changed:
        """See Adapters.unload."""
        return await self.adapters.unload(check_name(name), partial=partial, more=more)

    def _checked(self, order: Order) -> tuple[Order, Adapter]:
        check_name(order.name)
        former = self.pending.get(order.name)
        if former is not None and former.phase != "failed":
            raise Conflict(f"The adapter {order.name!r} is {former.phase} already.", code="adapter_busy")
        if order.source:
            shown = shown_source(order.source)
            path = check_path(order.output_dir or str(self._own_folder / folder_name(order.name)), self._folders, param="output_dir")
            if self._downloader is None:
                raise Unsupported("This appliance cannot download adapters; put the files there by other means, and leave `source` out.")
        else:
            if not order.path and not order.output_dir:
                raise Invalid("Say by `lora_path` where the adapter lies, or by `source` where it is downloaded from.", param="lora_path",
                              code="missing_required_parameter")
            shown, path = "", check_path(order.path or order.output_dir, self._folders)
        base = self.adapters.base_for(order.base_model, order.backend)
        return order, Adapter(order.name, path, base, shown, order.backend, order.is_pinned)

    async def _done(self, order: Order, adapter: Adapter) -> Changed:
        if not order.source:
            return await self.adapters.load(adapter, partial=order.is_partial)
        assert self._downloader is not None
        self._note(order, adapter, "downloading")
        try:
            await self._downloader.download(Wish(order.source, Path(adapter.path), order.max_workers, order.config),
                                            lambda progress: self._note(order, adapter, "downloading", progress))
            self._note(order, adapter, "loading")
            return await self.adapters.load(adapter, partial=order.is_partial)
        finally:
            self.pending.pop(order.name, None)

    async def _quietly(self, order: Order, adapter: Adapter) -> None:
        error: ApplianceError | None = None
        try:
            await self._done(order, adapter)
        except ApplianceError as exc:
            error = exc
        except asyncio.CancelledError:
            self.pending.pop(order.name, None)
            raise
        except Exception as exc:            # a fault of ours must not end the appliance
            log.exception("adapter_order_broke", adapter=order.name, error=repr(exc))
            error = Internal("an internal error")
        self.pending.pop(order.name, None)
        if error is not None:
            log.warning("adapter_order_failed", adapter=order.name, why=error.message)
            self._note(order, adapter, "failed")
            self.pending[order.name] = replace(self.pending[order.name], error=error.message)
            for name in [name for name, one in self.pending.items() if one.phase == "failed"][:-KEPT_FAILURES]:
                del self.pending[name]

    def _note(self, order: Order, adapter: Adapter, phase: str, progress: Progress | None = None) -> None:
        former = self.pending.get(order.name)
        since_s = former.since_s if former is not None and former.phase == phase else self._clock.now_s()
        self.pending[order.name] = Pending(order.name, adapter.source, adapter.path, phase, since_s, progress=progress)
