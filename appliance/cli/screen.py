"""Where output goes: tables on a terminal, tab-separated lines elsewhere, JSON where asked for.

Control characters are removed from everything that is printed: a log line must not control the terminal.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO

from appliance.base import jsons
from appliance.base.plain_text import plain_text

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table
    from rich.text import Text

_PLAIN_CONTROLS = {"\n", "\t"}
Row = Sequence[str]


def clean(text: str) -> str:
    """Remove escape sequences, and control characters except line ends and tabs."""
    if text.isprintable():
        return text
    text = plain_text(text)
    return "".join(
        char for char in text if char in _PLAIN_CONTROLS or (char >= " " and not "\x7f" <= char <= "\x9f")
    )


class Screen:
    """Standard output, or another stream: for people or for programs."""

    def __init__(self, *, is_json: bool = False, out: TextIO | None = None) -> None:
        self.is_json = is_json
        self.out = out or sys.stdout
        self.is_terminal = self.out.isatty()

    def say(self, text: str, *, end: str = "\n") -> None:
        """Write a text at once."""
        self.out.write(clean(text) + end)
        self.out.flush()

    def log_line(self, head: str, text: str, style: str) -> None:
        """Write one line of a log: its head dimmed and its text in `style`, on a terminal only."""
        if not self.is_terminal:
            self.say(f"{head} {text}")
            return
        from rich.text import Text

        line = Text.assemble((clean(head), "dim"), " ", (clean(text), style))
        self._console().print(line, soft_wrap=True)

    def object(self, value: Any, *, is_one_of_many: bool = False) -> None:
        """Write one JSON value; those of a stream on one line each."""
        self.out.write((jsons.dumps_text(value) if is_one_of_many else jsons.dumps_pretty(value)) + "\n")
        self.out.flush()

    def pairs(self, rows: Iterable[tuple[str, str]]) -> None:
        """Write names and values; those without a value are left out."""
        shown = [(name, value) for name, value in rows if value]
        if not self.is_terminal:
            for name, value in shown:
                self.say(f"{name}\t{_one_line(value)}")
            return
        table = self._grid()
        for name, value in shown:
            table.add_row(_plain(name, "bold"), _plain(value))
        self._print(table)

    def table(self, headers: Row, rows: Iterable[Row]) -> None:
        """Write a table; without a terminal, tab-separated lines below a line of headers."""
        if not self.is_terminal:
            for row in [headers, *rows]:
                self.say("\t".join(_one_line(cell) for cell in row))
            return
        self._print(_table(headers, rows))

    @contextmanager
    def refreshing(self) -> Iterator[Callable[[Row, Iterable[Row]], None]]:
        """Yield a function that rewrites a table: in place on a terminal, elsewhere below an empty line."""
        if not self.is_terminal:

            def append(headers: Row, rows: Iterable[Row]) -> None:
                self.table(headers, rows)
                self.say("")

            yield append
            return
        from rich.live import Live

        with Live(console=self._console(), auto_refresh=False) as live:
            yield lambda headers, rows: live.update(_table(headers, rows), refresh=True)

    @contextmanager
    def progress(self) -> Iterator[Callable[[str, float | None, str], None]]:
        """Yield a function that shows progress: a bar on a terminal, elsewhere lines.

        It takes (what, percent or None, note).
        """
        if not self.is_terminal:

            def line(what: str, percent: float | None, note: str) -> None:
                self.say(
                    ", ".join(filter(None, (what if percent is None else f"{what} {percent:.0f}%", note)))
                )

            yield line
            return
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        columns = [
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=30),
            TextColumn("{task.percentage:>3.0f}%"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}", markup=False),
        ]
        with Progress(*columns, console=self._console()) as bars:
            bar = bars.add_task("", total=100, note="")
            yield lambda what, percent, note: bars.update(
                bar, description=clean(what), completed=percent or 0, note=clean(note)
            )

    def _grid(self) -> Table:
        from rich.table import Table

        return Table.grid(padding=(0, 2))

    def _print(self, what: RenderableType) -> None:
        self._console().print(what)

    def _console(self) -> Console:
        from rich.console import Console

        return Console(file=self.out, highlight=False, markup=False)


def _table(headers: Row, rows: Iterable[Row]) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for header in headers:
        table.add_column(header, overflow="fold")
    for row in rows:
        table.add_row(*map(_plain, row))
    return table


def _plain(text: str, style: str = "") -> Text:
    from rich.text import Text

    return Text(clean(text), style=style)


def _one_line(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ")
