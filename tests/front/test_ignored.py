"""The header that names what was left out."""

import pytest

from appliance.front.pipeline.ignored import ignored_headers


@pytest.mark.parametrize(
    ("names", "value"),
    [
        ([], None),
        (["think"], "think"),
        (["a", "b", "a"], "a, b"),
        (["x\r\ny: ä"], "x??y:??"),
        (["x" * 100], "x" * 64),
        ([f"n{number}" for number in range(99)], ", ".join(f"n{number}" for number in range(20))),
    ],
)
def test_names_become_one_header(names: list[str], value: str | None) -> None:
    assert ignored_headers(names) == ([("x-appliance-ignored", value)] if value else [])
