"""The download engine: fetches the files of any source into a folder.

Downloads are resumed and verified, files are fetched in parallel, and each folder has one download at a time.

The steps of a download:
    rules     whether it is allowed, and with which credentials                rules
    listing   which files are there; names that no file may have               sources, names
    lock      no other download into this folder, on this machine              lock
    plan      which files are there already, and which parts of others         manifest, check, part
    space     whether the disk has enough space
    fetch     pieces by workers, retried, hashed, named                        workers, retry
    manifest  what was fetched, for `verify` and `repair`                      manifest

No incomplete file ever has its final name. No credential is ever written, raised or logged.
"""

import asyncio
import os
import ssl
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from appliance.base.clock import Clock, SystemClock, format_rfc3339
from appliance.base.errors import Conflict, Invalid
from appliance.base.proxies import Proxies
from appliance.base.tasks import Tasks
from appliance.downloads import manifest
from appliance.downloads.check import ExistingFiles, find_faults
from appliance.downloads.contract import (
    MAX_WORKERS,
    DownloadRequest,
    DownloadResult,
    FileFault,
    OnProgress,
    SourceOffer,
    ignore_progress,
    redact_source,
)
from appliance.downloads.lock import holding_lock
from appliance.downloads.names import check_names, resolve_target, select_files
from appliance.downloads.part import PartialFile, disk_error
from appliance.downloads.progress import REPORT_EVERY_S, ProgressMeter
from appliance.downloads.retry import retry
from appliance.downloads.rules import DownloadRules
from appliance.downloads.settings import DownloadSettings
from appliance.downloads.sources.contract import (
    DownloadSource,
    Listing,
    RemoteFile,
    SourceContext,
    SourceTimeouts,
)
from appliance.downloads.sources.table import open_source, split_source
from appliance.downloads.workers import FetchPlan, TransferWorkers


class DownloadEngine:
    """Downloads (`contract.Downloader`), lists (`contract.SourceLister`), verifies and repairs.

    Args:
        settings: The package's.
        output_roots: Folders that downloads may be written to, None = every folder.
        is_trusted: The caller is the operator (a terminal): the config may be mixed with the settings'
            credentials, and every file that the process can read may be read.
        proxies: Through which hosts are contacted, None = all directly.
    """

    def __init__(
        self,
        settings: DownloadSettings,
        *,
        output_roots: tuple[Path, ...] | None,
        is_trusted: bool = False,
        proxies: Proxies | None = None,
        timeouts: SourceTimeouts | None = None,
        clock: Clock | None = None,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        self.proxies = proxies or Proxies()
        self._settings = settings
        self._rules = DownloadRules(settings, output_roots, is_trusted)
        self._timeouts = timeouts or SourceTimeouts()
        self._clock = clock or SystemClock()
        self._ssl = ssl_context

    def apply(
        self, settings: DownloadSettings, *, output_roots: tuple[Path, ...] | None, proxies: Proxies
    ) -> None:
        """Apply new settings; running downloads keep those that they began with."""
        self._settings, self.proxies = settings, proxies
        self._rules = DownloadRules(settings, output_roots, self._rules.is_trusted)

    async def download(
        self, request: DownloadRequest, on_progress: OnProgress = ignore_progress
    ) -> DownloadResult:
        """Fetch what the folder does not have yet. Raises what `contract.Downloader` says."""
        return await self._download(request, on_progress, {})

    async def list_files(self, source: str, config: Mapping[str, str]) -> list[SourceOffer]:
        """List what a source has, without fetching it. Raises as `download` does."""
        request = DownloadRequest(source, Path("/"), config=config)
        async with self._opened(request, has_output=False) as (opened, _):
            listing: Listing = await retry(opened.listing, self._timeouts, lambda _: None)
        return [
            SourceOffer(
                file.path,
                file.size_bytes,
                file.digest.removeprefix("sha256:") if file.digest.startswith("sha256:") else "",
            )
            for file in listing.files
        ]

    async def verify(self, folder: Path) -> list[FileFault]:
        """Compare a folder with what its downloads recorded.

        Raises:
            NotFound: No download into it was recorded.
        """
        self._rules.check_output(folder)
        with ThreadPoolExecutor(2, thread_name_prefix="verify") as threads:
            return await asyncio.get_running_loop().run_in_executor(threads, find_faults, folder)

    async def repair(
        self,
        folder: Path,
        on_progress: OnProgress = ignore_progress,
        config: Mapping[str, str] | None = None,
    ) -> DownloadResult:
        """Fetch again what `verify` finds wrong, from the recorded source and revision.

        Raises:
            ApplianceError: As `download` does; UpstreamFailed also if the contents at the source differ from
                those recorded.
        """
        faulty = {fault.path for fault in await self.verify(folder)}
        total = DownloadResult(folder, 0, 0, 0, 0.0)
        for entry in manifest.read(folder):
            paths = [row.path for row in entry.files if row.path in faulty]
            if not paths and entry.finished_at:
                continue
            for path in paths:
                await asyncio.to_thread(_remove, folder / path)
            given = {"include": entry.include, "exclude": entry.exclude} | dict(config or {})
            workers = self._settings.download_max_workers
            request = DownloadRequest(entry.pinned, folder, max_workers=workers, config=given)
            expected = {row.path: row.sha256 for row in entry.files}
            total = total.plus(await self._download(request, on_progress, expected, asked=entry.asked))
        return total

    async def _download(
        self,
        request: DownloadRequest,
        on_progress: OnProgress,
        expected: Mapping[str, str],
        *,
        asked: str = "",
    ) -> DownloadResult:
        """Download.

        Args:
            request: What is to be fetched.
            on_progress: Called a few times a second.
            expected: SHA-256 by path that files must have.
            asked: The source in the manifest, "" = the request's.
        """
        begun_s = self._clock.monotonic_s()
        meter, tasks = ProgressMeter(on_progress, self._clock), Tasks()
        tasks.every(REPORT_EVERY_S, meter.report_often, name="report-progress")
        try:
            async with self._opened(request) as (source, config):
                meter.report()
                name = asked or redact_source("://".join(split_source(request.source)))
                workers = request.max_workers
                if not self._rules.is_trusted:
                    workers = min(workers, self._settings.download_max_workers)
                run = _Download(
                    request, source, config, name, expected, workers, meter, self._timeouts, self._clock
                )
                files, pinned = await run.list_files()
                async with holding_lock(request.output_dir, meter.wait_for) as has_waited:
                    if has_waited:  # that may have taken hours
                        files, pinned = await run.list_files()
                    await run.fetch(files, pinned)
            meter.enter("done")
        finally:
            await tasks.close()
        seconds = self._clock.monotonic_s() - begun_s
        return DownloadResult(
            request.output_dir, meter.files, meter.total_bytes or 0, meter.fetched_bytes, seconds
        )

    @asynccontextmanager
    async def _opened(
        self, request: DownloadRequest, *, has_output: bool = True
    ) -> AsyncIterator[tuple[DownloadSource, dict[str, str]]]:
        """Open a request's source, after the check that it may be fetched."""
        if not 1 <= request.max_workers <= MAX_WORKERS:
            raise Invalid(f"`max_workers` must be from 1 to {MAX_WORKERS}.", param="max_workers")
        if has_output:
            self._rules.check_output(request.output_dir)
        scheme, address = split_source(request.source)
        config = self._rules.choose_config(request, scheme)
        source = open_source(
            scheme,
            SourceContext(
                address,
                config,
                reach=self._rules.reach_of(scheme, config),
                folders=self._rules.folders,
                timeouts=self._timeouts,
                ssl_context=self._ssl,
                proxies=self.proxies,
            ),
        )
        try:
            yield source, config
        finally:
            await source.close()


@dataclass(frozen=True, slots=True)
class _Download:
    """One download while it runs. `asked`, `expected`: as in `DownloadEngine._download`."""

    request: DownloadRequest
    source: DownloadSource
    config: Mapping[str, str]
    asked: str
    expected: Mapping[str, str]
    workers: int
    meter: ProgressMeter
    timeouts: SourceTimeouts
    clock: Clock

    async def list_files(self) -> tuple[list[RemoteFile], str]:
        """Return the wanted files, whose names can be used, and the source with its revision."""
        self.meter.enter("listing")
        listing: Listing = await retry(
            self.source.listing, self.timeouts, lambda why: self.meter.enter("listing", f"again: {why}")
        )
        files = select_files(listing.files, self.config, source=redact_source(self.request.source))
        check_names(files)
        return files, listing.pinned

    async def fetch(self, files: list[RemoteFile], pinned: str) -> None:
        """Fetch into the folder. The caller holds its lock."""
        folder, meter = self.request.output_dir, self.meter
        entry = manifest.ManifestEntry(
            self.asked, pinned, self.config.get("include", ""), self.config.get("exclude", "")
        )
        sizes = [file.size_bytes for file in files]
        meter.files = len(files)
        meter.total_bytes = None if None in sizes else sum(size or 0 for size in sizes)
        meter.enter("verifying")
        threads = ThreadPoolExecutor(self.workers + 2, thread_name_prefix="download")
        try:
            kept, wanted = await ExistingFiles(folder, meter, threads, self.expected).sort_files(files)
            plans = self._plan(wanted)
            # Before anything is counted: it drops the parts that the source cannot resume.
            workers = self._transfer_workers(plans, threads)
            meter.done_bytes += sum(plan.part.done.total() for plan in plans)
            _check_space(folder, plans)
            manifest.write(folder, replace(entry, files=tuple(kept)))  # so that `repair` knows that it began
            if plans:
                meter.enter("fetching")
                await workers.run()
            if meter.total_bytes is None:
                meter.total_bytes = meter.done_bytes
            rows = sorted([*kept, *workers.rows], key=lambda row: row.path)
            finished_at = format_rfc3339(self.clock.now_s(), fraction_digits=3)
            manifest.write(folder, replace(entry, finished_at=finished_at, files=tuple(rows)))
            manifest.clear_journal(folder, entry.asked)
        except OSError as exc:
            raise disk_error(exc.filename or folder, exc) from exc
        finally:
            threads.shutdown(wait=False)

    def _plan(self, files: list[RemoteFile]) -> list[FetchPlan]:
        """Plan the files that are to be fetched, the largest first, from the parts that are there."""
        folder, plans = self.request.output_dir, []
        for file in sorted(files, key=lambda file: -(file.size_bytes or 0)):
            part = PartialFile(folder / manifest.FOLDER, file, asked=self.asked)
            plan = FetchPlan(file, resolve_target(folder, file.path), part, self.expected.get(file.path, ""))
            plan.was_resumed = part.recall() > 0
            plans.append(plan)
        return plans

    def _transfer_workers(self, plans: list[FetchPlan], threads: ThreadPoolExecutor) -> TransferWorkers:
        return TransferWorkers(
            self.source,
            self.request.output_dir,
            plans,
            workers=self.workers,
            meter=self.meter,
            timeouts=self.timeouts,
            clock=self.clock,
            threads=threads,
        )


def _check_space(folder: Path, plans: list[FetchPlan]) -> None:
    """Check that what is missing fits.

    Raises:
        Conflict: It does not.
    """
    needed = sum(
        plan.remote.size_bytes - plan.part.done.total()
        for plan in plans
        if plan.remote.size_bytes is not None
    )
    found = os.statvfs(folder)
    free = found.f_bavail * found.f_frsize
    if needed > free:
        raise Conflict(
            f"Not enough disk space in {folder}: {needed:,} bytes are needed, {free:,} are free. "
            "Free some space, or choose another folder.",
            code="no_space",
            details={"needed_bytes": needed, "free_bytes": free},
        )


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as exc:
        raise disk_error(path, exc) from exc
