"""How far a download is, reported a few times a second at most."""

from collections import deque
from dataclasses import dataclass, field

from appliance.base.clock import Clock
from appliance.base.errors import ApplianceError
from appliance.downloads.contract import DownloadProgress, OnProgress

REPORT_EVERY_S = 0.25
RATE_OVER_S = 5.0


@dataclass
class ProgressMeter:
    """Counts a download's progress; `report` passes it on if it has changed."""

    on_progress: OnProgress
    clock: Clock
    phase: str = "listing"
    note: str = ""
    files: int = 0
    files_done: int = 0
    total_bytes: int | None = None
    done_bytes: int = 0
    fetched_bytes: int = 0
    now: dict[str, int] = field(default_factory=dict)  # path → its workers
    _last: DownloadProgress | None = None
    _marks: deque[tuple[float, int]] = field(default_factory=deque)

    def enter(self, phase: str, note: str = "") -> None:
        """Begin another phase, and report it."""
        self.phase, self.note = phase, note
        self.report()

    def wait_for(self, holder: str) -> None:
        """Report that another process holds the folder's lock."""
        self.enter("waiting", f"{holder} downloads into the same folder")

    def fetched(self, count: int) -> None:
        """Count bytes that came over the network."""
        self.fetched_bytes += count
        self.done_bytes += count

    def begin(self, path: str) -> None:
        """Count one more worker for a file."""
        self.now[path] = self.now.get(path, 0) + 1

    def end(self, path: str) -> None:
        """Count one worker less for a file."""
        self.now[path] -= 1
        if not self.now[path]:
            del self.now[path]

    async def report_often(self) -> None:
        """Report, for a task that repeats."""
        self.report()

    def report(self) -> None:
        """Pass the count on if it has changed."""
        found = DownloadProgress(
            files=self.files,
            files_done=self.files_done,
            total_bytes=self.total_bytes,
            done_bytes=self.done_bytes,
            fetched_bytes=self.fetched_bytes,
            rate_bytes_s=self._measure_rate(),
            now=tuple(self.now),
            note=self.note,
            phase=self.phase,
        )
        if found != self._last:
            self._last = found
            self.on_progress(found)

    def _measure_rate(self) -> float:
        """Return bytes a second over the last seconds."""
        now = self.clock.monotonic_s()
        self._marks.append((now, self.fetched_bytes))
        while len(self._marks) > 2 and now - self._marks[0][0] > RATE_OVER_S:
            self._marks.popleft()
        (_, before), elapsed = self._marks[0], now - self._marks[0][0]
        if elapsed <= 0 or self.phase != "fetching":
            return 0.0
        return round((self.fetched_bytes - before) / elapsed, 1)


def first_error(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the error that ended a group of workers; an ApplianceError is preferred."""
    errors: list[BaseException] = []
    for error in group.exceptions:
        errors.append(first_error(error) if isinstance(error, BaseExceptionGroup) else error)
    return next((error for error in errors if isinstance(error, ApplianceError)), errors[0])
