"""The table that bench/compare.py prints: figures by row and subject, what is missing and why."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

DIRECT = "direct"  # the upstream without a proxy: no column, but a line below the table
MISSING, NOTHING = "not available", "—"


@dataclass(frozen=True)
class Row:
    """A row of the table.

    Attributes:
        title: What was measured, with its unit.
        decimals: How many are shown.
        is_relative: Whether a figure is shown as a multiple of the base's, too.
    """

    title: str
    decimals: int
    is_relative: bool = True


@dataclass
class Results:
    """What was measured.

    Attributes:
        versions: By name of the subject, in the order of the columns; an empty one where it is not known.
        missing: Why a subject is not available, by its name.
        samples: By row and subject: the figure of each round.
        notes: What a reader must know about single figures.
    """

    versions: dict[str, str] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    samples: dict[Row, dict[str, list[float]]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def add(self, row: Row, name: str, value: float) -> None:
        """Take the figure of one round."""
        self.samples.setdefault(row, {}).setdefault(name, []).append(value)


def shown(value: float, decimals: int) -> str:
    """Return a number with separators, never `-0`."""
    return f"{round(value, decimals) + 0.0:,.{decimals}f}"


def cell(row: Row, values: Sequence[float], base: Sequence[float], *, has_spread: bool) -> str:
    """Return the median, such as `45.2 (3.23×)`; with the spread of the rounds `45.2 (3.23×), 44.1–47.0`."""
    value = statistics.median(values)
    text = shown(value, row.decimals)
    if row.is_relative and base and statistics.median(base) > 0:
        text += f" ({value / statistics.median(base):.2f}×)"
    if has_spread and len(values) > 1:
        text += f", {shown(min(values), row.decimals)}–{shown(max(values), row.decimals)}"
    return text


def markdown(results: Results, base: str, *, has_spread: bool = False) -> str:
    """Return the table, and below it what is missing and why, the figures without a proxy, and the notes.

    Args:
        results: What was measured.
        base: Name of the subject that the others are shown as multiples of; one that was not measured is left out.
        has_spread: Whether the lowest and the highest round are shown, too.
    """
    names = list(results.versions)
    lines = [
        f"| | {' | '.join(f'{name} {results.versions[name]}'.strip() for name in names)} |",
        f"| --- |{' --- |' * len(names)}",
    ]
    for row, samples in results.samples.items():
        cells = []
        for name in names:
            if name in samples:
                others = () if name == base else samples.get(base, ())
                cells.append(cell(row, samples[name], others, has_spread=has_spread))
            else:
                cells.append(MISSING if name in results.missing else NOTHING)
        lines.append(f"| {row.title} | {' | '.join(cells)} |")
    lines.append("")
    lines += [f"- {name}: {MISSING}: {reason}" for name, reason in results.missing.items()]
    direct = [
        f"{row.title.removeprefix('added ')} {shown(statistics.median(samples[DIRECT]), row.decimals)}"
        for row, samples in results.samples.items()
        if DIRECT in samples
    ]
    if direct:
        lines.append(f"- Without a proxy, in the same run: {'; '.join(direct)}.")
    return "\n".join([*lines, *(f"- {note}" for note in results.notes)]).rstrip()
