"""A ring of the latest log lines that several readers may follow while it is written."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LogLine:
    """One line: its running number, seconds since 1970, where it came from (`appliance`, `worker.stdout` …), the text."""

    number: int
    at_s: float
    source: str
    text: str


class LogBuffer:
    """Keeps the last `max_lines` lines; a follower that is too slow loses the oldest, never blocks the writer."""

    def __init__(self, max_lines: int = 2000, *, max_characters: int = 8192) -> None:
        self._lines: deque[LogLine] = deque(maxlen=max_lines)
        self._next = 1
        self._max_characters = max_characters
        self._changed = asyncio.Event()
        self._followers = 0

    def add(self, at_s: float, source: str, text: str) -> None:
        """Put one line; texts over `max_characters` are cut with an ellipsis."""
        if len(text) > self._max_characters:
            text = text[: self._max_characters] + "…"
        self._lines.append(LogLine(self._next, at_s, source, text))
        self._next += 1
        if self._followers:
            self._changed.set()
            self._changed = asyncio.Event()

    def tail(self, count: int, *, source: str = "") -> list[LogLine]:
        """Give up to `count` latest lines, oldest first; `source` keeps those whose source begins with it."""
        if count <= 0:
            return []
        return [line for line in self._lines if line.source.startswith(source)][-count:]

    async def follow(self, *, after: int | None = None, source: str = "") -> AsyncIterator[LogLine]:
        """Give lines newer than number `after` (None = from now on), for ever."""
        seen = self._next - 1 if after is None else after
        self._followers += 1
        try:
            while True:
                changed = self._changed
                for line in [x for x in self._lines if x.number > seen]:
                    seen = line.number
                    if line.source.startswith(source):
                        yield line
                if changed is self._changed:
                    await changed.wait()
        finally:
            self._followers -= 1
