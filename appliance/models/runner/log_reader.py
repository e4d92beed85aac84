"""Reads the logs of llama-servers for operators: the latest lines, and new ones as they are written."""

import asyncio
import os
import re
from collections.abc import AsyncGenerator, Callable
from pathlib import Path

from appliance.models.runner.log_file import log_stem, shown_line

MAX_LINES = 2000
MAX_LINE_CHARS = 8192  # of a line; the rest is cut off, with an ellipsis
MAX_TAIL_BYTES = 1 << 20
READ_BYTES = 1 << 18  # at a time; a reader that falls back further misses lines
POLL_S = 0.5


def find_log(log_dir: Path, alias: str, port: int = 0) -> Path | None:
    """Return the latest log of a model, also of a former run of the appliance; None = there is none (blocks).

    Args:
        log_dir: Where the logs are.
        alias: The model.
        port: Only the log of the llama-server that had this port; 0 = any.

    Of two aliases with the same beginning of their logs' names (log_file.log_stem) the latest log of both is
    found.
    """
    pattern = re.compile(rf"{re.escape(log_stem(alias))}_{port or '[0-9]+'}\.log")
    try:
        with os.scandir(log_dir) as entries:
            found = [entry for entry in entries if pattern.fullmatch(entry.name) and entry.is_file()]
            return Path(max(found, key=lambda entry: entry.stat().st_mtime).path) if found else None
    except OSError:
        return None


class LogReader:
    """Reads one log from its end on; a file that is replaced or shortened is read from its start."""

    def __init__(self) -> None:
        self._file: tuple[int, int] | None = None  # device and inode of what was read last
        self._offset = 0
        self._rest = b""  # the beginning of a line that is not complete

    def tail(self, find_path: Callable[[], Path | None], lines: int) -> list[str]:
        """Return the last lines, and go on behind them; `find_path` returns the log's path (blocks)."""
        path = find_path()
        if path is None:
            return []
        try:
            with path.open("rb") as file:
                status = os.fstat(file.fileno())
                start = max(0, status.st_size - MAX_TAIL_BYTES)
                file.seek(start)
                data = file.read(MAX_TAIL_BYTES)
        except OSError:
            return []
        self._file, self._offset = (status.st_dev, status.st_ino), start + len(data)
        whole, newline, self._rest = data.rpartition(b"\n")
        found = (whole + newline).splitlines()
        if start and found:
            del found[0]  # its beginning was not read
        return [_shown(line) for line in found[-lines:]] if lines else []

    def more(self, find_path: Callable[[], Path | None]) -> list[str]:
        """Return the lines that were written since (blocks)."""
        path = find_path()
        if path is None:
            return []
        try:
            with path.open("rb") as file:
                status = os.fstat(file.fileno())
                if (status.st_dev, status.st_ino) != self._file or status.st_size < self._offset:
                    self._file, self._offset, self._rest = (status.st_dev, status.st_ino), 0, b""
                if status.st_size - self._offset > READ_BYTES:
                    self._offset, self._rest = status.st_size - READ_BYTES, b""
                file.seek(self._offset)
                data = file.read(READ_BYTES)
        except OSError:
            return []
        self._offset += len(data)
        *whole, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > READ_BYTES:
            whole, self._rest = [*whole, self._rest], b""
        return [_shown(line) for line in whole]


async def follow_log(
    make_finder: Callable[[], Callable[[], Path | None]],
    *,
    lines: int,
    is_over: asyncio.Event,
    poll_s: float = POLL_S,
) -> AsyncGenerator[list[str], None]:
    """Yield the last lines of a log, then new ones whenever there are some, until `is_over` is set.

    Args:
        make_finder: Called for each look; returns what finds the log's path in a thread.
        lines: How many of the last lines come first.
        is_over: Ends it.
        poll_s: Seconds between two looks.
    """
    reader = LogReader()
    yield await asyncio.to_thread(reader.tail, make_finder(), lines)
    while not is_over.is_set():
        try:
            await asyncio.wait_for(is_over.wait(), poll_s)
        except TimeoutError:
            if new := await asyncio.to_thread(reader.more, make_finder()):
                yield new


def _shown(line: bytes) -> str:
    text = shown_line(line)
    return text if len(text) <= MAX_LINE_CHARS else text[:MAX_LINE_CHARS] + "…"
