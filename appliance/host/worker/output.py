"""The worker's output, passed on to the log: any bytes, lines of any length, any amount.

The pipe is always read, since a full one would block the worker; what is too much is counted instead of kept,
and a worker that floods is slowed down. Its output costs the appliance a bounded part of each second.
"""

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from appliance.base.plain_text import plain_text

READ_BYTES = 65_536
SLICE_BYTES = 1024  # so much is split into lines before the budget is checked again
MAX_LINE_BYTES = 8192  # the rest of a line is skipped
FLOOD_PAUSE_S = 0.01  # after each read of a flood: about 6 MiB a second are read
LINES_AT_ONCE = 50  # then other tasks get their turn


class LineSplitter:
    """Splits a byte stream into lines, and keeps a limited part of an unfinished one. Pure.

    Args:
        max_bytes: Of a line.

    Attributes:
        skipped_bytes: Bytes that were in no line returned.
    """

    def __init__(self, max_bytes: int = MAX_LINE_BYTES) -> None:
        self._max_bytes = max_bytes
        self._unfinished = b""
        self._is_skipping = False  # the present line was cut off: its end is searched
        self.skipped_bytes = 0

    def split(self, data: bytes) -> Iterator[bytes]:
        """Yield the lines that `data` completes, and the beginning of a line that is too long."""
        *ended, rest = data.split(b"\n")
        for piece in ended:
            if self._is_skipping:
                self.skipped_bytes += len(piece)
                self._is_skipping = False
            else:
                yield self._shown(self._unfinished + piece)
            self._unfinished = b""
        if self._is_skipping:
            self.skipped_bytes += len(rest)
        elif len(self._unfinished) + len(rest) > self._max_bytes:
            yield self._shown(self._unfinished + rest)
            self._unfinished, self._is_skipping = b"", True
        else:
            self._unfinished += rest

    def skip(self, data: bytes) -> None:
        """Skip `data`; if it ends inside a line, the rest of that line, too."""
        self.skipped_bytes += len(self._unfinished) + len(data)
        self._unfinished, self._is_skipping = b"", not data.endswith(b"\n")

    def rest(self) -> bytes:
        """Return the unfinished line at the end of the stream."""
        rest, self._unfinished = self._unfinished, b""
        return rest

    def _shown(self, line: bytes) -> bytes:
        self.skipped_bytes += max(0, len(line) - self._max_bytes)
        return line if len(line) <= self._max_bytes else line[: self._max_bytes] + "…".encode()


@dataclass(slots=True)
class OutputBudget:
    """How much is passed on in each second. Pure: the caller provides the time, in monotonic seconds.

    Attributes:
        max_lines: In a second.
        max_bytes: In a second.
        began_s: Start of the present second.
        lines: Passed on in it.
        size: Bytes passed on in it.
    """

    max_lines: int = 500
    max_bytes: int = 262_144
    began_s: float = 0.0
    lines: int = 0
    size: int = 0

    def renew(self, now_s: float) -> bool:
        """Begin a new second if the present one is over; say whether it did."""
        if now_s - self.began_s < 1:
            return False
        self.began_s, self.lines, self.size = now_s, 0, 0
        return True

    @property
    def is_spent(self) -> bool:
        """Whether no more may be passed on in this second."""
        return self.lines >= self.max_lines or self.size >= self.max_bytes

    def take(self, line: bytes) -> None:
        """Count a line."""
        self.lines += 1
        self.size += len(line)


async def forward_output(
    stream: asyncio.StreamReader, on_line: Callable[[str], None], now_s: Callable[[], float]
) -> None:
    """Read a stream to its end; pass on its lines, and how much was left out.

    Args:
        stream: Of the worker.
        on_line: Called with each line.
        now_s: Returns monotonic seconds.
    """
    splitter, budget = LineSplitter(), OutputBudget(began_s=now_s())
    while data := await stream.read(READ_BYTES):
        if budget.renew(now_s()):
            _report_skipped(splitter, on_line)
        before = splitter.skipped_bytes
        for at in range(0, len(data), SLICE_BYTES):
            if budget.is_spent:
                splitter.skip(data[at:])
                break
            for line in splitter.split(data[at : at + SLICE_BYTES]):
                budget.take(line)
                _pass_on(line, on_line)
                if budget.lines % LINES_AT_ONCE == 0:
                    await asyncio.sleep(0)
        if splitter.skipped_bytes > before:
            await asyncio.sleep(FLOOD_PAUSE_S)
    if rest := splitter.rest():
        _pass_on(rest, on_line)
    _report_skipped(splitter, on_line)


def _pass_on(line: bytes, on_line: Callable[[str], None]) -> None:
    on_line(plain_text(line.decode("utf-8", "replace")).rstrip("\r"))


def _report_skipped(splitter: LineSplitter, on_line: Callable[[str], None]) -> None:
    if splitter.skipped_bytes:
        on_line(f"[{splitter.skipped_bytes} bytes of output left out]")
        splitter.skipped_bytes = 0
