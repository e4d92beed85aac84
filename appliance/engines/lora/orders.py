"""Orders of adapters: checked, downloaded if there is a source, then loaded.

An order in the background is stored in a file until it is done: after a restart it is resumed, or its error
says why not. An order that its caller waits for is cancelled with the caller, except for a load that has
begun.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from appliance.base.clock import Clock
from appliance.base.durable_jobs import DurableJobs, JobLimits, JobPlan, Step, end_job, redact_text
from appliance.base.errors import (
    ApplianceError,
    Conflict,
    Internal,
    Invalid,
    NotFound,
    Unavailable,
    Unsupported,
)
from appliance.base.logs import get_logger
from appliance.base.tasks import Tasks
from appliance.downloads.contract import Downloader, DownloadProgress
from appliance.downloads.request import (
    credential_names,
    find_missing_credentials,
    public_config,
    secret_texts,
)
from appliance.engines.lora.changes import AdapterChange
from appliance.engines.lora.manager import AdapterManager
from appliance.engines.lora.order import AdapterOrder, OrderJob, order_file
from appliance.engines.lora.plan import Adapter
from appliance.engines.lora.rules import check_name, check_path, check_source, folder_name

log = get_logger("lora")
MAX_KEPT = 100
NOT_RESUMED = "The appliance stopped during this order. Order it again to continue with what is there."


class AdapterOrders:
    """Carries out orders, at once or in the background. `open` resumes those of an earlier run.

    Args:
        downloader: None = nothing can be downloaded here.
        folders: Where adapters may lie.
        own_folder: Where they are downloaded to if the caller names no other folder.
        path: The file in which orders are stored; None = in memory only.
        has_variable: Returns whether the environment has a variable.
        resumes: Whether `open` resumes interrupted orders.
    """

    def __init__(
        self,
        adapters: AdapterManager,
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
        self._downloader = downloader
        self._clock = clock
        self._has_variable = has_variable
        self._resumes = resumes
        self._jobs = DurableJobs[OrderJob](
            tasks=tasks,
            clock=clock,
            limits=JobLimits(kept=MAX_KEPT, ends_kept=("failed", "interrupted")),
            file=order_file(path) if path is not None else None,
            on_fault=_fault,
            on_end=_log_end,
        )
        self.apply(folders, own_folder)

    def apply(self, folders: Sequence[Path], own_folder: Path) -> None:
        """Take other folders; orders that are being carried out keep theirs."""
        self._folders, self._own_folder = tuple(folders), own_folder

    @property
    def pending(self) -> dict[str, OrderJob]:
        """By adapter: the orders that are being carried out, and the latest one of each name that failed."""
        return {job.id: job for job in self._jobs.all()}

    async def open(self) -> None:
        """Resume the stored orders, as far as possible."""
        await self._jobs.open(self._resume)

    # ---- orders

    async def load(self, order: AdapterOrder) -> AdapterChange:
        """Download the adapter if it has a source, and load it. If the caller leaves, only a download stops.

        Raises:
            Invalid, Forbidden: A name or a path is not allowed.
            Unsupported: Nothing can be downloaded here.
            ApplianceError: What `Downloader.download` and `AdapterManager.load` raise.
        """
        adapter = self._check(order)
        self.adapters.reserve(order.name)
        if not order.source:
            await self._jobs.forget(order.name)  # this order takes the place of one that failed
            return await self.adapters.load(adapter, is_partial=order.is_partial)
        changes: list[AdapterChange] = []

        async def load_now() -> None:
            changes.append(await self.adapters.load(adapter, is_partial=order.is_partial))

        job = _job(order, adapter)
        steps = (self._download_step(order, adapter), Step("loading", load_now))
        plan: JobPlan[OrderJob] = JobPlan(
            steps, secrets=secret_texts(order.request(adapter)), is_detached=False, is_stored=False
        )
        end = await self._jobs.run(job, plan)
        if end.failure is not None:
            raise end.failure
        if not changes:
            raise Unavailable("The appliance is stopping; the adapter is not loaded.", code="shutting_down")
        return changes[0]

    async def begin(self, order: AdapterOrder) -> Adapter:
        """Store an order, and carry it out in the background. `pending` shows its progress.

        Raises:
            ApplianceError: The order is invalid; nothing was downloaded yet.
        """
        adapter = self._check(order)
        self.adapters.reserve(order.name)
        await self._jobs.begin(_job(order, adapter), self._plan(order, adapter))
        return adapter

    async def unload(
        self, name: str, *, partial: bool = False, more: dict[str, object] | None = None
    ) -> AdapterChange:
        """Unload an adapter, see `AdapterManager.unload`.

        An order in the background that is not loading yet is given up, and one that failed is forgotten.
        """
        given_up = await self._give_up(check_name(name))
        try:
            return await self.adapters.unload(name, is_partial=partial, more=more)
        except NotFound:
            if given_up is None:
                raise
            return self.adapters.describe_unloaded(given_up)

    # ---- the check

    def _check(self, order: AdapterOrder) -> Adapter:
        """Return the adapter of an order."""
        check_name(order.name)
        former = self._jobs.find(order.name)
        if former is not None and former.is_active:
            raise Conflict(f"The adapter {order.name!r} is already {former.phase}.", code="adapter_busy")
        source, path = self._check_download(order) if order.source else ("", self._check_path(order))
        base = self.adapters.status.find_base_model(order.base_model, order.backend)
        return Adapter(order.name, path, base, source, order.backend, order.is_pinned)

    def _check_download(self, order: AdapterOrder) -> tuple[str, str]:
        """Return the source as it may be shown, and the folder that it is downloaded to."""
        source = check_source(order.source)
        folder = order.output_dir or str(self._own_folder / folder_name(order.name))
        path = check_path(folder, self._folders, param="output_dir")
        if self._downloader is None:
            raise Unsupported(
                "This appliance cannot download adapters. Copy the files there, and leave `source` out."
            )
        return source, path

    def _check_path(self, order: AdapterOrder) -> str:
        if not order.path and not order.output_dir:
            raise Invalid(
                "Name the adapter's path in `lora_path`, or where it is downloaded from in `source`.",
                param="lora_path",
                code="missing_required_parameter",
            )
        return check_path(order.path or order.output_dir, self._folders)

    # ---- the steps

    def _plan(self, order: AdapterOrder, adapter: Adapter) -> JobPlan[OrderJob]:
        steps = [self._download_step(order, adapter)] if order.source else []
        steps.append(Step("loading", lambda: self._load_when_up(order, adapter)))
        return JobPlan(steps, secrets=secret_texts(order.request(adapter)))

    def _download_step(self, order: AdapterOrder, adapter: Adapter) -> Step:
        def report(progress: DownloadProgress) -> None:
            self._jobs.update(adapter.name, progress=progress)

        async def download() -> None:
            assert self._downloader is not None
            try:
                await self._downloader.download(order.request(adapter), report)
            finally:
                self._jobs.update(adapter.name, progress=None)

        return Step("downloading", download)

    async def _load_when_up(self, order: AdapterOrder, adapter: Adapter) -> None:
        """Load it on the backends that are up; wait while there is none."""
        while True:
            if not self.adapters.hosts.has_target(adapter):
                await self._jobs.enter(adapter.name, "waiting")
                await self.adapters.hosts.wait_target(adapter)
            await self._jobs.enter(adapter.name, "loading")
            try:
                await self.adapters.load(adapter, is_partial=order.is_partial)
                return
            except Unavailable as exc:
                if exc.code != "no_backend":  # else it went down in between
                    raise

    # ---- the end, and the next start

    async def _give_up(self, name: str) -> Adapter | None:
        """Cancel an order of the background and forget it; None = there is none, or it is being loaded."""
        job = self._jobs.find(name)
        if job is None or not self._jobs.is_stored(name) or job.phase == "loading":
            return None
        if job.is_active:
            ended = await self._jobs.cancel(name, wait_s=None)
            if ended.state == "completed":  # at the last moment
                return None
        await self._jobs.forget(name)
        log.info("adapter_order_cancelled", adapter=name, phase=job.phase)
        return job.adapter

    def _resume(self, job: OrderJob) -> JobPlan[OrderJob] | OrderJob:
        """Resume an order of an earlier run.

        1. its credentials were not stored     → interrupted, until it is ordered again
        2. orders must not be resumed          → the same
        3. its folder is not allowed any more  → failed
        4. otherwise                           → it continues
        """
        self.adapters.reserve(job.name)
        now_s = self._clock.now_s()
        missing = find_missing_credentials(job.needs, self._has_variable)
        if missing:  # 1
            error = (
                "The appliance stopped during this order, and credentials are not kept: "
                f"{', '.join(missing)}. "
                "Set them in the environment and restart, or order it again."
            )
            return end_job(job, "interrupted", at_s=now_s, error=error)
        if not self._resumes:  # 2
            return end_job(job, "interrupted", at_s=now_s, error=NOT_RESUMED)
        try:
            check_path(job.path, self._folders)
        except ApplianceError as exc:  # 3
            return end_job(job, "failed", at_s=now_s, error=exc.message)
        log.info("adapter_order_resumed", adapter=job.name, source=job.source)
        return self._plan(job.order(), job.adapter)  # 4


def _job(order: AdapterOrder, adapter: Adapter) -> OrderJob:
    return OrderJob(
        id=order.name,
        adapter=adapter,
        is_partial=order.is_partial,
        max_workers=order.max_workers,
        config=public_config(order.config),
        needs=credential_names(order.request(adapter)),
    )


def _fault(job: OrderJob, exc: Exception, secrets: Sequence[str]) -> ApplianceError:
    log.error("adapter_order_crashed", adapter=job.name, error=redact_text(repr(exc), secrets), exc_info=exc)
    return Internal("an internal error")


def _log_end(job: OrderJob) -> None:
    if job.state == "failed":
        log.warning("adapter_order_failed", adapter=job.name, reason=job.error)
