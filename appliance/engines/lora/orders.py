"""Adapters as callers order them: names and paths are checked, what has a source is downloaded first, then it is loaded (lora.py).

An order that its caller does not wait for is kept in a file until it is done: a restart takes it up again, or says what keeps it from going on.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from appliance.base.clock import Clock
from appliance.base.errors import (
    ApplianceError,
    Conflict,
    Internal,
    Invalid,
    NotFound,
    Unavailable,
    Unsupported,
)
from appliance.base.logs import SECRETS, get_logger
from appliance.base.tasks import Tasks
from appliance.downloads.contract import DEFAULT_WORKERS, Downloader, DownloadProgress, DownloadRequest
from appliance.downloads.request import (
    blank_secrets,
    credential_names,
    find_missing_credentials,
    public_config,
    secret_texts,
)
from appliance.engines.lora import orders_file as lora_orders_file
from appliance.engines.lora.adapters import AdapterChange, AdapterReconciler
from appliance.engines.lora.orders_file import StoredOrder
from appliance.engines.lora.plan import Adapter
from appliance.engines.lora.rules import check_name, check_path, folder_name, shown_source

log = get_logger("lora")
KEPT_FAILURES = 100
OVER = frozenset({"failed", "interrupted"})


@dataclass(frozen=True, slots=True)
class AdapterOrder:
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
class PendingOrder:
    """An order under way, or the latest one of its name that came to nothing. Times since 1970.

    phase   downloading | waiting (until a backend of its base model is up) | loading | failed | interrupted (by the end of the appliance, and
            it cannot go on by itself); `error` says why
    """

    name: str
    source: str
    path: str
    phase: str
    since_s: float
    error: str = ""
    progress: DownloadProgress | None = None


class AdapterOrders:
    """Takes orders, at once or in the background. `open` takes up those of an earlier run.

    Takes   downloader: None = nothing can be downloaded here; folders: where adapters may lie; own_folder: where they are downloaded to
            when the caller names no other; path: the file that orders are kept in, None = only until the end; has_variable: whether the
            environment has a variable; resumes: whether interrupted orders go on at `open`
    """

    def __init__(
        self,
        adapters: AdapterReconciler,
        *,
        downloader: Downloader | None,
        folders: Sequence[Path],
        own_folder: Path,
        tasks: Tasks,
        clock: Clock,
        path: Path | None = None,
        has_variable: Callable[[str], bool] = lambda _: False,
        resumes: bool = True,
    ) -> None:
        self.adapters = adapters
        self.pending: dict[str, PendingOrder] = {}
        self._downloader, self._tasks, self._clock = downloader, tasks, clock
        self._path, self._has_variable, self._resumes = path, has_variable, resumes
        self._kept: dict[str, StoredOrder] = {}  # of what goes on in the background, or came to nothing there
        self._running: dict[str, asyncio.Task[None]] = {}
        self._writing = asyncio.Lock()
        self.apply(folders, own_folder)

    def apply(self, folders: Sequence[Path], own_folder: Path) -> None:
        """Take other folders; orders under way keep theirs."""
        self._folders, self._own_folder = tuple(folders), own_folder

    async def open(self) -> None:
        """Take up the kept orders, as far as they can go on."""
        kept = await asyncio.to_thread(lora_orders_file.read, self._path) if self._path is not None else []
        for one in kept:
            self._take_up(one)
        if kept:
            await self._keep()

    # ---- orders

    async def load(self, order: AdapterOrder) -> AdapterChange:
        """Download it where it has a source, and load it; a caller that leaves ends a download, but not a load.

        Raises  Invalid · Forbidden: the path · Unsupported: nothing can be downloaded · what Downloader.download and Adapters.load raise
        """
        order, adapter = self._checked(order)
        if self._kept.pop(order.name, None) is not None:  # it stands in the place of one that came to nothing
            await self._keep()
        if not order.source:
            return await self.adapters.load(adapter, partial=order.is_partial)
        try:
            await self._download(order, adapter)
            self._note(adapter, "loading")
            return await self.adapters.load(adapter, partial=order.is_partial)
        finally:
            self.pending.pop(order.name, None)

    async def begin(self, order: AdapterOrder) -> Adapter:
        """The same in the background, once it is kept; what comes of it, `pending` tells, and then the list of adapters.

        Raises  what can be said without downloading anything
        """
        order, adapter = self._checked(order)
        wish = _wish(order, adapter)
        self._start(
            order,
            StoredOrder(
                adapter,
                order.is_partial,
                order.max_workers,
                public_config(order.config),
                credential_names(wish),
            ),
        )
        await self._keep()
        return adapter

    async def unload(
        self, name: str, *, partial: bool = False, more: dict[str, object] | None = None
    ) -> AdapterChange:
        """See Adapters.unload; an order in the background that has not come to loading yet is given up, and one that came to nothing forgotten."""
        given_up = await self._give_up(check_name(name))
        try:
            return await self.adapters.unload(name, partial=partial, more=more)
        except NotFound:
            if given_up is None:
                raise
            return self.adapters.not_there(given_up)

    def _checked(self, order: AdapterOrder) -> tuple[AdapterOrder, Adapter]:
        check_name(order.name)
        former = self.pending.get(order.name)
        if former is not None and former.phase not in OVER:
            raise Conflict(f"The adapter {order.name!r} is {former.phase} already.", code="adapter_busy")
        if order.source:
            shown = shown_source(order.source)
            path = check_path(
                order.output_dir or str(self._own_folder / folder_name(order.name)),
                self._folders,
                param="output_dir",
            )
            if self._downloader is None:
                raise Unsupported(
                    "This appliance cannot download adapters; put the files there by other means, and leave `source` out."
                )
        else:
            if not order.path and not order.output_dir:
                raise Invalid(
                    "Say by `lora_path` where the adapter lies, or by `source` where it is downloaded from.",
                    param="lora_path",
                    code="missing_required_parameter",
                )
            shown, path = "", check_path(order.path or order.output_dir, self._folders)
        base = self.adapters.base_for(order.base_model, order.backend)
        return order, Adapter(order.name, path, base, shown, order.backend, order.is_pinned)

    async def _download(self, order: AdapterOrder, adapter: Adapter) -> None:
        assert self._downloader is not None
        wish = _wish(order, adapter)
        SECRETS.learn(secret_texts(wish))  # what others log of it is blanked, too
        self._note(adapter, "downloading")
        await self._downloader.download(wish, lambda progress: self._note(adapter, "downloading", progress))

    # ---- in the background

    def _start(self, order: AdapterOrder, kept: StoredOrder) -> None:
        self._note(kept.adapter, "downloading" if order.source else "loading")
        self._kept[order.name] = kept
        self._running[order.name] = self._tasks.start(
            self._quietly(order, kept.adapter), name=f"lora-order-{order.name}"
        )

    async def _quietly(self, order: AdapterOrder, adapter: Adapter) -> None:
        """Do an order to its end. One that is cancelled stays in `pending`: with the appliance, the file is to have it still."""
        error: ApplianceError | None = None
        try:
            if order.source:
                await self._download(order, adapter)
            await self._load_when_up(order, adapter)
        except ApplianceError as exc:
            error = exc
        except Exception as exc:  # a fault of ours must not end the appliance
            log.exception("adapter_order_broke", adapter=order.name, error=repr(exc))
            error = Internal("an internal error")
        finally:
            self._running.pop(order.name, None)
        if error is None:
            self._kept.pop(order.name, None)
            self.pending.pop(order.name, None)
        else:
            why = SECRETS.redact(blank_secrets(error.message, secret_texts(_wish(order, adapter))))
            log.warning("adapter_order_failed", adapter=order.name, why=why)
            self._put_over(adapter, "failed", why)
        await self._keep()

    async def _load_when_up(self, order: AdapterOrder, adapter: Adapter) -> None:
        """Load it on those that are up; wait while nobody is, as after a restart of everything."""
        while True:
            if not self.adapters.has_host(adapter):
                self._note(adapter, "waiting")
                await self.adapters.until_host(adapter)
            self._note(adapter, "loading")
            try:
                await self.adapters.load(adapter, partial=order.is_partial)
                return
            except Unavailable as exc:
                if exc.code != "no_backend":  # else it went down in between
                    raise

    async def _give_up(self, name: str) -> Adapter | None:
        """End an order of the background and forget it; None = there is none, or it is being loaded."""
        kept, pending = self._kept.get(name), self.pending.get(name)
        if kept is None or pending is None or pending.phase == "loading":
            return None
        if (task := self._running.get(name)) is not None:
            task.cancel()
            await asyncio.wait([task])
        if self._kept.pop(name, None) is None:  # it has just ended by itself
            return None
        self.pending.pop(name, None)
        await self._keep()
        log.info("adapter_order_given_up", adapter=name, phase=pending.phase)
        return kept.adapter

    def _take_up(self, kept: StoredOrder) -> None:
        """Let an order of an earlier run go on: 1. it had come to nothing   2. it may not go on by itself, or cannot   3. it goes on."""
        adapter = kept.adapter
        missing = find_missing_credentials(kept.needs, self._has_variable)
        self._kept[adapter.name] = kept
        if kept.phase == "failed":  # 1
            self._put_over(adapter, "failed", kept.error, kept.since_s)
        elif missing:  # 2
            self._put_over(
                adapter,
                "interrupted",
                "It was interrupted, and cannot go on without credentials, which are not kept: "
                f"{', '.join(missing)}. Set them in the environment and restart, or order it again.",
            )
        elif not self._resumes:
            self._put_over(
                adapter,
                "interrupted",
                "It was interrupted when the appliance ended. Order it again to go on from what is there.",
            )
        else:  # 3
            try:
                check_path(adapter.path, self._folders)
            except ApplianceError as exc:
                self._put_over(adapter, "failed", exc.message)
                return
            log.info("adapter_order_taken_up", adapter=adapter.name, source=adapter.source)
            self._start(
                AdapterOrder(
                    adapter.name,
                    "" if adapter.source else adapter.path,
                    adapter.source,
                    is_partial=kept.is_partial,
                    max_workers=kept.max_workers,
                    config=kept.config,
                ),
                kept,
            )

    # ---- what is told and kept

    def _note(self, adapter: Adapter, phase: str, progress: DownloadProgress | None = None) -> None:
        former = self.pending.get(adapter.name)
        since_s = former.since_s if former is not None and former.phase == phase else self._clock.now_s()
        self.pending[adapter.name] = PendingOrder(
            adapter.name, adapter.source, adapter.path, phase, since_s, progress=progress
        )

    def _put_over(self, adapter: Adapter, phase: str, error: str, since_s: float | None = None) -> None:
        """Tell of an order that came to nothing, until there is another one of its name or there are too many."""
        since_s = self._clock.now_s() if since_s is None else since_s
        self.pending[adapter.name] = PendingOrder(
            adapter.name, adapter.source, adapter.path, phase, since_s, error
        )
        for name in [name for name, one in self.pending.items() if one.phase in OVER][:-KEPT_FAILURES]:
            del self.pending[name]
            self._kept.pop(name, None)

    async def _keep(self) -> None:
        """Write the orders as they are, one write after the other."""
        if self._path is None:
            return
        async with self._writing:
            rows = [
                replace(kept, phase=one.phase, since_s=one.since_s, error=one.error)
                for name, kept in self._kept.items()
                if (one := self.pending.get(name)) is not None
            ]
            await asyncio.to_thread(lora_orders_file.write, self._path, rows)


def _wish(order: AdapterOrder, adapter: Adapter) -> DownloadRequest:
    return DownloadRequest(order.source, Path(adapter.path), order.max_workers, order.config)
