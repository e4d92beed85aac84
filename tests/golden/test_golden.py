"""What goes over the wire is as it was: each area is taken again and held against its file.

A difference that is wanted: `python -m tests.golden.capture --write [AREA …]`, and read what git says of it.
"""

import pytest

from tests.golden.capture import AREAS, as_text, difference, file_of

# Longest first, so that workers side by side end together.
FIRST = ["command_line", "models", "backends", "downloads", "full", "settings"]


@pytest.mark.parametrize(
    "area", sorted(AREAS, key=lambda area: (FIRST.index(area) if area in FIRST else len(FIRST), area))
)
async def test_wire_is_as_recorded(area: str) -> None:
    told = difference(area, as_text(await AREAS[area]()))
    if told:
        pytest.fail(f"{area} is not as it was (- then, + now):\n{told}", pytrace=False)


def test_every_file_has_an_area() -> None:
    assert {path.stem for path in file_of("x").parent.glob("*.json")} == set(AREAS)
