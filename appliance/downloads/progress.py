"""How far a download is, told some times a second at most."""

from collections import deque
from dataclasses import dataclass, field

from appliance.base.clock import Clock
from appliance.base.errors import ApplianceError
from appliance.downloads.contract import DownloadProgress, OnProgress

REPORT_EVERY_S = 0.25
RATE_OVER_S = 5.0


@dataclass
class ProgressMeter:
    """Counts; `tell` passes the count on when it differs from the last one."""

    on_progress: OnProgress
    clock: Clock
    phase: str = "listing"
    note: str = ""
    files: int = 0
    files_done: int = 0
    total_bytes: int | None = None
    done_bytes: int = 0
    fetched_bytes: int = 0
    now: dict[str, int] = field(default_factory=dict)  # path → workers at it
    _told: DownloadProgress | None = None
    _marks: deque[tuple[float, int]] = field(default_factory=deque)

    def enter(self, phase: str, note: str = "") -> None:
        self.phase, self.note = phase, note
        self.report()

    def wait_for(self, who: str) -> None:
        self.enter("waiting", f"{who} fetches into the same folder")

    def fetched(self, count: int) -> None:
        self.fetched_bytes += count
        self.done_bytes += count

    def begin(self, path: str) -> None:
        self.now[path] = self.now.get(path, 0) + 1

    def end(self, path: str) -> None:
        self.now[path] -= 1
        if not self.now[path]:
            del self.now[path]

    async def report_often(self) -> None:
        self.report()

    def report(self) -> None:
        found = DownloadProgress(
            self.files,
            self.files_done,
            self.total_bytes,
            self.done_bytes,
            self.fetched_bytes,
            self._rate(),
            tuple(self.now),
            self.note,
            self.phase,
        )
        if found != self._told:
            self._told = found
            self.on_progress(found)

    def _rate(self) -> float:
        """Give bytes a second over the last seconds."""
        now = self.clock.monotonic_s()
        self._marks.append((now, self.fetched_bytes))
        while len(self._marks) > 2 and now - self._marks[0][0] > RATE_OVER_S:
            self._marks.popleft()
        (_, before), elapsed = self._marks[0], now - self._marks[0][0]
        return (
            round((self.fetched_bytes - before) / elapsed, 1)
            if elapsed > 0 and self.phase == "fetching"
            else 0.0
        )


def first_error(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Give the error that ended a group of workers: one of ours before others."""
    errors: list[BaseException] = []
    for error in group.exceptions:
        errors.append(first_error(error) if isinstance(error, BaseExceptionGroup) else error)
    return next((error for error in errors if isinstance(error, ApplianceError)), errors[0])
