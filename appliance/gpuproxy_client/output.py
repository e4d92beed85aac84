"""What the client prints: lines, tables as aiserve-gpuproxyd's client has them, prices; or JSON."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, TextIO

from appliance.admin.tables import align
from appliance.base import jsons
from appliance.cli.screen import clean

MAX_CELL: Final = 200


@dataclass(slots=True)
class ClientOutput:
    """Standard output.

    Attributes:
        out: Where it goes.
        is_json: The server's objects are printed, and nothing else.
    """

    out: TextIO
    is_json: bool = False

    def object(self, value: Any) -> bool:
        """Print an object where JSON is asked for; return whether it is."""
        if self.is_json:
            self.out.write(jsons.dumps_pretty(value) + "\n")
            self.out.flush()
        return self.is_json

    def lines(self, *lines: str) -> None:
        """Print lines."""
        self.out.write("".join(f"{clean(line)}\n" for line in lines))
        self.out.flush()

    def table(self, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
        """Print a table; cells of a server are cut, and cannot control a terminal."""
        self.out.write(align([header, *([text_of(cell) for cell in row] for row in rows)]))
        self.out.flush()


def text_of(value: Any) -> str:
    """Return a value of a response as text; what is missing is empty."""
    return "" if value is None else str(value)[:MAX_CELL]


def number_of(value: Any) -> float:
    """Return a number of a response; what is none counts as 0."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else 0.0


def price(value: Any) -> str:
    """Return dollars with two decimals: $0.45."""
    return f"${number_of(value):.2f}"


def vram(value: Any) -> str:
    """Return gigabytes without decimals: 24GB."""
    return f"{number_of(value):.0f}GB"


def rows_of(body: dict[str, Any], name: str) -> list[dict[str, Any]]:
    """Return a list of objects in a response; what is none is left out."""
    found = body.get(name)
    return [row for row in found if isinstance(row, dict)] if isinstance(found, list) else []
