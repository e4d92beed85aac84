"""Tables with aligned columns, two spaces apart; on a terminal nothing in them can control it."""

from collections.abc import Iterable, Sequence

from appliance.cli.screen import clean

GAP = 2


def align(rows: Iterable[Sequence[str]]) -> str:
    """Return rows as lines; the last cell of a row is not filled up."""
    cells = [[clean(cell).replace("\n", " ").replace("\t", " ") for cell in row] for row in rows]
    columns = max(map(len, cells), default=0)
    widths = [max((len(row[n]) for row in cells if n < len(row) - 1), default=0) for n in range(columns)]
    lines = []
    for row in cells:
        filled = [cell.ljust(widths[n] + GAP) for n, cell in enumerate(row[:-1])]
        lines.append("".join([*filled, *row[-1:]]))
    return "".join(f"{line}\n" for line in lines)
