"""The worker's output, brought into the log and the ring: any bytes, lines of any length, any amount.

The pipe is always read on, since a full one would stop the worker; what is too much is counted instead of kept, and a worker that
floods is slowed down. Nothing it writes can hold up the appliance: its output costs a bounded part of each second.
"""

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass

READ_BYTES = 65_536
SLICE_BYTES = 1024  # of what was read: so much is cut before the allowance is asked again
LONGEST_BYTES = 8192  # of one line; the rest of it is passed over
FLOOD_PAUSE_S = 0.01  # after each reading of a flood: some 6 MiB a second come through
AT_ONCE = 50  # lines before others have their turn


class LineSplitter:
    """Cuts what was read into lines, and keeps no more than `longest` bytes of an unfinished one. Pure.

    passed_over   bytes that were in no line that it gave
    """

    def __init__(self, longest: int = LONGEST_BYTES) -> None:
        self._longest = longest
        self._held = b""
        self._is_over = False  # of the present line enough was given: its end is looked for
        self.passed_over = 0

    def cut(self, data: bytes) -> Iterator[bytes]:
        """Give the lines that `data` ends, and the beginning of one that has become too long, with an ellipsis."""
        *ended, rest = data.split(b"\n")
        for piece in ended:
            if self._is_over:
                self.passed_over += len(piece)
                self._is_over = False
            else:
                yield self._shown(self._held + piece)
            self._held = b""
        if self._is_over:
            self.passed_over += len(rest)
        elif len(self._held) + len(rest) > self._longest:
            yield self._shown(self._held + rest)
            self._held, self._is_over = b"", True
        else:
            self._held += rest

    def skip(self, data: bytes) -> None:
        """Pass `data` over; if it ends within a line, the rest of that line, too."""
        self.passed_over += len(self._held) + len(data)
        self._held, self._is_over = b"", not data.endswith(b"\n")

    def rest(self) -> bytes:
        """Give the line that nothing ended."""
        held, self._held = self._held, b""
        return held

    def _shown(self, line: bytes) -> bytes:
        self.passed_over += max(0, len(line) - self._longest)
        return line if len(line) <= self._longest else line[: self._longest] + "…".encode()


@dataclass(slots=True)
class OutputBudget:
    """How much is told in each second. Pure: the caller brings the time, monotonic seconds."""

    most_lines: int = 500
    most_bytes: int = 262_144
    began_s: float = 0.0
    lines: int = 0
    size: int = 0

    def turn(self, now_s: float) -> bool:
        """Begin a new second where one is over; say whether it does."""
        if now_s - self.began_s < 1:
            return False
        self.began_s, self.lines, self.size = now_s, 0, 0
        return True

    @property
    def is_spent(self) -> bool:
        return self.lines >= self.most_lines or self.size >= self.most_bytes

    def take(self, line: bytes) -> None:
        self.lines += 1
        self.size += len(line)


async def tell_output(
    stream: asyncio.StreamReader, tell: Callable[[str], None], now_s: Callable[[], float]
) -> None:
    """Read `stream` to its end and `tell` its lines, and how much was left out.

    Takes   now_s: gives monotonic seconds
    """
    cutter, allowance = LineSplitter(), OutputBudget(began_s=now_s())
    while data := await stream.read(READ_BYTES):
        if allowance.turn(now_s()):
            _tell_passed_over(cutter, tell)
        before = cutter.passed_over
        for at in range(0, len(data), SLICE_BYTES):
            if allowance.is_spent:
                cutter.skip(data[at:])
                break
            for line in cutter.cut(data[at : at + SLICE_BYTES]):
                allowance.take(line)
                _tell_line(line, tell)
                if allowance.lines % AT_ONCE == 0:
                    await asyncio.sleep(0)
        if cutter.passed_over > before:
            await asyncio.sleep(FLOOD_PAUSE_S)
    if rest := cutter.rest():
        _tell_line(rest, tell)
    _tell_passed_over(cutter, tell)


def _tell_line(line: bytes, tell: Callable[[str], None]) -> None:
    tell(line.decode("utf-8", "replace").rstrip("\r"))


def _tell_passed_over(cutter: LineSplitter, tell: Callable[[str], None]) -> None:
    if cutter.passed_over:
        tell(f"[{cutter.passed_over} bytes of output left out]")
        cutter.passed_over = 0
