"""A Downloader by script: it makes progress, writes files, fails, hangs, and keeps what was requested."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from appliance.base.errors import ApplianceError
from appliance.downloads.contract import DownloadProgress, DownloadRequest, DownloadResult, FileFault


@dataclass
class Run:
    """One download or repair under way; a test lets it go on."""

    request: DownloadRequest
    tell: Callable[[DownloadProgress], None]
    over: "asyncio.Future[None]" = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    was_cancelled: bool = False

    def progress(
        self, done: int, total: int = 100, *, phase: str = "fetching", now: tuple[str, ...] = ("a.bin",)
    ) -> None:
        self.tell(
            DownloadProgress(
                files=2,
                total_bytes=total,
                done_bytes=done,
                fetched_bytes=done,
                rate_bytes_s=12.5,
                now=now,
                phase=phase,
            )
        )

    def finish(self) -> None:
        self.over.set_result(None)

    def fail(self, error: Exception) -> None:
        self.over.set_exception(error)


class StandinDownloader:
    """A Downloader by script.

    Attributes:
        at_once: Each run ends by itself: True = well, an error = with that.
        writes: Files that are put below output_dir at a good end.
    """

    def __init__(self) -> None:
        self.runs: list[Run] = []
        self.begun = asyncio.Queue[Run]()
        self.at_once: bool | Exception = False
        self.writes: dict[str, bytes] = {}
        self.flaws: list[FileFault] = []
        self.refuses: ApplianceError | None = None

    async def download(
        self, request: DownloadRequest, on_progress: Callable[[DownloadProgress], None] = lambda _: None
    ) -> DownloadResult:
        run = Run(request, on_progress)
        self.runs.append(run)
        self.begun.put_nowait(run)
        try:
            if isinstance(self.at_once, Exception):
                raise self.at_once
            if not self.at_once:
                await run.over
        except asyncio.CancelledError:
            run.was_cancelled = True
            raise
        for name, data in self.writes.items():
            path = request.output_dir / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        return DownloadResult(request.output_dir, 2, 100, 60, 1.5)

    async def verify(self, folder: Path) -> list[FileFault]:
        if self.refuses is not None:
            raise self.refuses
        return list(self.flaws)

    async def repair(
        self,
        folder: Path,
        on_progress: Callable[[DownloadProgress], None] = lambda _: None,
        config: Mapping[str, str] | None = None,
    ) -> DownloadResult:
        return await self.download(DownloadRequest("", folder, config=config or {}), on_progress)

    async def next(self) -> Run:
        """Wait for the next run to begin."""
        return await asyncio.wait_for(self.begun.get(), 5)
