"""The download engine: one way for every source to bring files into a folder, resumed, in parallel, checked, and one at a time for a folder.

The way of a download:
    rules     may it be done at all, and with which keys                       download_config.py
    listing   which files are there; names that no file may have               sources/, download_names.py
    lock      nobody else at work in this folder, on this machine              download_lock.py
    plan      which files are there already, and which parts of others         download_manifest.py, download_part.py
    space     is there room for the rest
    fetch     pieces by workers, asked for again, hashed, named                download_fetch.py, download_retry.py
    manifest  what it was, for `verify` and `repair`

Never half a file under its own name; never a credential in what is written, raised or logged.
"""

import asyncio
import os
import ssl
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

from appliance.base.clock import Clock, SystemClock, format_rfc3339
from appliance.base.errors import Conflict, Invalid
from appliance.base.proxies import Proxies
from appliance.base.tasks import Tasks
from appliance.downloads import lock as download_lock
from appliance.downloads import manifest
from appliance.downloads import names as download_names
from appliance.downloads.check import ExistingFiles, find_faults
from appliance.downloads.contract import (
    MAX_WORKERS,
    DownloadRequest,
    DownloadResult,
    FileFault,
    OnProgress,
    SourceOffer,
    redact_source,
)
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
    """Fetches (fetching.Downloader).

    Takes   settings: the room's; output_roots: folders that downloads may be put in, None = every folder; is_trusted: the caller is the
            operator (a terminal), whose config may be mixed with the settings' credentials, and who may read what the process can read;
            proxies: through which hosts are asked, None = all directly
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
        """Take new settings; downloads that run keep those that they began with."""
        self._settings, self.proxies = settings, proxies
        self._rules = DownloadRules(settings, output_roots, self._rules.is_trusted)

    async def download(
        self, request: DownloadRequest, on_progress: OnProgress = lambda _: None
    ) -> DownloadResult:
        """Fetch what is not there yet.

        Raises  Invalid, NotFound, Forbidden, Conflict (no space, not writable), UpstreamFailed, TimedOut: which file, and why
        """
        return await self._download(request, on_progress, {})

    async def list_files(self, source: str, config: Mapping[str, str]) -> list[SourceOffer]:
        """List what a source has, without fetching it (fetching.Lister).

        Raises  as `download`
        """
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
        """Hold a folder against what its downloads wrote down.

        Raises  NotFound: nothing was downloaded into it, that it knows of
        """
        self._rules.check_output(folder)
        with ThreadPoolExecutor(2, thread_name_prefix="verify") as threads:
            return await asyncio.get_running_loop().run_in_executor(threads, find_faults, folder)

    async def repair(
        self, folder: Path, on_progress: OnProgress = lambda _: None, config: Mapping[str, str] | None = None
    ) -> DownloadResult:
        """Fetch again what `verify` finds wrong, from the source and at the revision that was written down.

        Raises  as download; UpstreamFailed too when the source has other contents by now than those that were written down
        """
        flawed = {flaw.path for flaw in await self.verify(folder)}
        totals = DownloadResult(folder, 0, 0, 0, 0.0)
        for entry in manifest.read(folder):
            rows = {row.path: row for row in entry.files if row.path in flawed}
            if not rows and entry.finished_at:
                continue
            for path in rows:
                await asyncio.to_thread(_remove, folder / path)
            given = {"include": entry.include, "exclude": entry.exclude} | dict(config or {})
            request = DownloadRequest(
                entry.pinned, folder, max_workers=self._settings.download_max_workers, config=given
            )
            done = await self._download(
                request, on_progress, {row.path: row.sha256 for row in entry.files}, asked=entry.asked
            )
            totals = replace(
                totals,
                files=totals.files + done.files,
                total_bytes=totals.total_bytes + done.total_bytes,
                fetched_bytes=totals.fetched_bytes + done.fetched_bytes,
                seconds=totals.seconds + done.seconds,
            )
        return totals

    async def _download(
        self, request: DownloadRequest, on_progress: OnProgress, expected: Mapping[str, str], asked: str = ""
    ) -> DownloadResult:
        begun = self._clock.monotonic_s()
        meter, tasks = ProgressMeter(on_progress, self._clock), Tasks()
        tasks.every(REPORT_EVERY_S, meter.report_often, name="tell-progress")
        try:
            async with self._opened(request) as (source, config):
                meter.report()
                chosen, pinned = await self._list(source, config, request, meter)
                async with download_lock.holding_lock(request.output_dir, meter.wait_for) as has_waited:
                    if has_waited:  # that may have taken hours
                        chosen, pinned = await self._list(source, config, request, meter)
                    name = asked or redact_source("://".join(split_source(request.source)))
                    entry = manifest.ManifestEntry(
                        name, pinned, config.get("include", ""), config.get("exclude", "")
                    )
                    await self._fetch(source, request, chosen, entry, expected, meter)
            meter.enter("done")
        finally:
            await tasks.close()
        return DownloadResult(
            request.output_dir,
            meter.files,
            meter.total_bytes or 0,
            meter.fetched_bytes,
            self._clock.monotonic_s() - begun,
        )

    @asynccontextmanager
    async def _opened(
        self, request: DownloadRequest, *, has_output: bool = True
    ) -> AsyncIterator[tuple[DownloadSource, dict[str, str]]]:
        """Open a wish's source, once it is seen that it may be fetched."""
        if not 1 <= request.max_workers <= MAX_WORKERS:
            raise Invalid(f"max_workers must be from 1 to {MAX_WORKERS}.", param="max_workers")
        if has_output:
            self._rules.check_output(request.output_dir)
        scheme, address = split_source(request.source)
        config = self._rules.config_of(request, scheme)
        source = open_source(
            scheme,
            SourceContext(
                address,
                config,
                self._rules.reach_of(scheme, config),
                self._rules.folders,
                self._timeouts,
                self._ssl,
                self.proxies,
            ),
        )
        try:
            yield source, config
        finally:
            await source.close()

    async def _list(
        self,
        source: DownloadSource,
        config: Mapping[str, str],
        request: DownloadRequest,
        meter: ProgressMeter,
    ) -> tuple[list[RemoteFile], str]:
        """Give the wanted files, their names fit for us, and the source with its revision."""
        meter.enter("listing")
        listing: Listing = await retry(
            source.listing, self._timeouts, lambda why: meter.enter("listing", f"again: {why}")
        )
        chosen = download_names.select_files(listing.files, config, source=redact_source(request.source))
        download_names.check_names(chosen)
        return chosen, listing.pinned

    async def _fetch(
        self,
        source: DownloadSource,
        request: DownloadRequest,
        files: list[RemoteFile],
        entry: manifest.ManifestEntry,
        expected: Mapping[str, str],
        meter: ProgressMeter,
    ) -> None:
        """Fetch, in a folder that is ours now."""
        folder, workers = (
            request.output_dir,
            request.max_workers
            if self._rules.is_trusted
            else min(request.max_workers, self._settings.download_max_workers),
        )
        sizes = [file.size_bytes for file in files]
        meter.files = len(files)
        meter.total_bytes = None if None in sizes else sum(size or 0 for size in sizes)
        meter.enter("verifying")
        threads = ThreadPoolExecutor(workers + 2, thread_name_prefix="download")
        try:
            checks = ExistingFiles(folder, meter, threads, expected)
            kept, wanted = await checks.sort_files(files)
            jobs = [
                FetchPlan(
                    file,
                    download_names.resolve_target(folder, file.path),
                    PartialFile(folder / manifest.FOLDER, file, asked=entry.asked),
                    expected.get(file.path, ""),
                )
                for file in sorted(wanted, key=lambda file: -(file.size_bytes or 0))
            ]
            for job in jobs:
                job.was_resumed = job.part.recall() > 0
            fetching = TransferWorkers(
                source,
                folder,
                jobs,
                workers=workers,
                meter=meter,
                timeouts=self._timeouts,
                clock=self._clock,
                threads=threads,
            )
            meter.done_bytes += sum(job.part.done.total() for job in jobs)
            _check_space(folder, jobs)
            manifest.write(folder, replace(entry, files=tuple(kept)))  # so that `repair` knows what was begun
            if jobs:
                meter.enter("fetching")
                await fetching.run()
            if meter.total_bytes is None:
                meter.total_bytes = meter.done_bytes
            rows = sorted([*kept, *fetching.rows], key=lambda row: row.path)
            manifest.write(
                folder,
                replace(
                    entry,
                    finished_at=format_rfc3339(self._clock.now_s(), fraction_digits=3),
                    files=tuple(rows),
                ),
            )
            manifest.clear_journal(folder, entry.asked)
        except OSError as exc:
            raise disk_error(exc.filename or folder, exc) from exc
        finally:
            threads.shutdown(wait=False)


def _check_space(folder: Path, jobs: list[FetchPlan]) -> None:
    """Raises  Conflict: what is missing does not fit"""
    needed = sum(
        job.remote.size_bytes - job.part.done.total() for job in jobs if job.remote.size_bytes is not None
    )
    found = os.statvfs(folder)
    free = found.f_bavail * found.f_frsize
    if needed > free:
        raise Conflict(
            f"{folder} has room for {free:,} more bytes, and {needed:,} are to be fetched into it. Make room, or choose another folder.",
            code="no_space",
            details={"needed_bytes": needed, "free_bytes": free},
        )


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as exc:
        raise disk_error(path, exc) from exc
