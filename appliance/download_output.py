"""How `appliance download` shows its progress: a bar on a terminal, plain lines elsewhere, or JSON lines."""

import sys
from collections.abc import Iterable
from dataclasses import asdict
from types import TracebackType
from typing import Any, Self

from appliance.base import jsons
from appliance.base.clock import SystemClock
from appliance.downloads.contract import DownloadProgress, FileFault

LINE_EVERY_S = 5.0  # between two plain lines
JSON_EVERY_S = 0.5


def size(count: float) -> str:
    """Return a number of bytes in decimal units: 512 bytes, 1.5 MB."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def render_faults(faults: Iterable[FileFault]) -> list[str]:
    """Return a line for each fault."""
    return [f"{fault.kind:9} {fault.path}: {fault.detail}" for fault in faults]


def render_line(progress: DownloadProgress) -> str:
    """Return the progress of a download as one line."""
    if progress.phase in {"listing", "waiting"}:
        return f"{progress.phase}{f': {progress.note}' if progress.note else ''}"
    total = f" of {size(progress.total_bytes)}" if progress.total_bytes is not None else ""
    percent = f" ({100 * progress.done_bytes / progress.total_bytes:.0f}%)" if progress.total_bytes else ""
    rate = f", {size(progress.rate_bytes_s)}/s" if progress.rate_bytes_s else ""
    files = f"{progress.files_done} of {progress.files} file{'s' if progress.files != 1 else ''}"
    note = f"; {progress.note}" if progress.note else ""
    return f"{progress.phase}: {files}, {size(progress.done_bytes)}{total}{percent}{rate}{note}"


class ProgressLines:
    """Lines on standard error, or JSON objects on standard output: every few seconds, and each new phase."""

    def __init__(self, *, is_json: bool) -> None:
        self._is_json = is_json
        self._clock = SystemClock()
        self._last = ("", "", float("-inf"))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Do nothing: there is nothing to close."""

    def progress(self, progress: DownloadProgress) -> None:
        """Print the progress; at most one line per interval, unless phase or note has changed."""
        phase, note, at_s = self._last
        now, every_s = self._clock.monotonic_s(), JSON_EVERY_S if self._is_json else LINE_EVERY_S
        if (progress.phase, progress.note) == (phase, note) and now - at_s < every_s:
            return
        self._last = (progress.phase, progress.note, now)
        if self._is_json:
            print(jsons.dumps_text({"status": progress.phase} | asdict(progress)), flush=True)
        else:
            print(render_line(progress), file=sys.stderr, flush=True)


class ProgressBar:
    """A bar on the terminal."""

    def __init__(self, title: str) -> None:
        from rich.console import Console
        from rich.markup import escape
        from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        self._escape = escape
        self._bar: Any = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self._task = self._bar.add_task(escape(title), total=None, rate="")

    def __enter__(self) -> Self:
        self._bar.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.__exit__(kind, error, trace)

    def progress(self, progress: DownloadProgress) -> None:
        """Show the progress, and the file that is being downloaded."""
        what = progress.now[0] if progress.now else progress.phase
        more = f" and {len(progress.now) - 1} more" if len(progress.now) > 1 else ""
        text = progress.note if progress.note else f"{progress.files_done}/{progress.files} {what}{more}"
        self._bar.update(
            self._task,
            description=self._escape(text[:70]),
            total=progress.total_bytes,
            completed=progress.done_bytes,
            rate=f"{size(progress.rate_bytes_s)}/s" if progress.rate_bytes_s else "",
        )
