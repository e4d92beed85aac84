"""A ring of the latest log lines that several readers may follow while it is written."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LogLine:
    """One line.

    Attributes:
        number: Counts up from 1.
        at_s: Seconds since 1970.
        source: `appliance`, `worker.stdout`, ….
        text: The line itself.
    """

    number: int
    at_s: float
    source: str
    text: str


class LogBuffer:
    """Keeps the latest lines; a follower that is too slow loses the oldest and never blocks the writer.

    Args:
        max_lines: Lines kept.
        max_characters: Of a line; the rest is cut off, with an ellipsis.
    """

    def __init__(self, max_lines: int = 2000, *, max_characters: int = 8192) -> None:
        self._lines: deque[tuple[float, str, str]] = deque(maxlen=max_lines)  # LogLine, less its number
        self._next = 1
        self._max_characters = max_characters
        self._changed = asyncio.Event()
        self._followers = 0

    def add(self, at_s: float, source: str, text: str) -> None:
        """Append one line."""
        if len(text) > self._max_characters:
            text = text[: self._max_characters] + "…"
        self._lines.append((at_s, source, text))
        self._next += 1
        if self._followers:
            self._changed.set()
            self._changed = asyncio.Event()

    def tail(self, count: int, *, source: str = "") -> list[LogLine]:
        """Return up to `count` of the latest lines, oldest first, whose source begins with `source`."""
        if count <= 0:
            return []
        return [line for line in self._numbered() if line.source.startswith(source)][-count:]

    def _numbered(self, after: int = 0) -> list[LogLine]:
        """Return the lines that are kept, from the one behind `after` on."""
        first = self._next - len(self._lines)
        skipped = max(0, after + 1 - first)
        return [LogLine(first + at, *line) for at, line in enumerate(self._lines) if at >= skipped]

    async def follow(self, *, after: int | None = None, source: str = "") -> AsyncIterator[LogLine]:
        """Yield new lines for ever.

        Args:
            after: The number of the last line already seen; None = only lines from now on.
            source: Only lines whose source begins with it.
        """
        seen = self._next - 1 if after is None else after
        self._followers += 1
        try:
            while True:
                changed = self._changed
                for line in self._numbered(seen):
                    seen = line.number
                    if line.source.startswith(source):
                        yield line
                if changed is self._changed:
                    await changed.wait()
        finally:
            self._followers -= 1
