"""Groups of the model table: which models they keep apart, and what is refused."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from appliance.models.settings import ModelSettings
from appliance.models.table.catalogue import Catalogue
from appliance.models.table.catalogue_reader import read_catalogue
from appliance.models.table.differences import differences
from appliance.models.table.groups import Group, conflicts_of

ALL = "abcde"


def pairs(**groups: dict[str, Any]) -> set[str]:
    """Give the pairs of the models a to e that these groups keep apart."""
    made = {name: Group(**how | {"members": tuple(how["members"])}) for name, how in groups.items()}
    found = conflicts_of(made, ALL)
    assert all(one in found[other] for one, others in found.items() for other in others)
    return {"".join(sorted(one + other)) for one, others in found.items() for other in others}


@pytest.mark.parametrize(
    ("groups", "apart"),
    [
        ({}, ""),
        ({"x": {"members": "ab", "swap": True, "exclusive": False}}, "ab"),
        ({"x": {"members": "abc", "swap": True, "exclusive": False}}, "ab ac bc"),
        ({"x": {"members": "ab", "swap": False, "exclusive": False}}, ""),
        ({"x": {"members": "ab", "swap": False, "exclusive": True}}, "ac ad ae bc bd be"),
        ({"x": {"members": "ab"}}, "ab ac ad ae bc bd be"),
        (
            {
                "x": {"members": "ab", "swap": False, "exclusive": True},
                "y": {"members": "cd", "swap": False, "exclusive": True},
            },
            "ac ad ae bc bd be ce de",
        ),
        (
            {
                "x": {"members": "ab", "swap": False, "exclusive": True},
                "y": {"members": "c", "swap": False, "exclusive": False},
            },
            "ac ad ae bc bd be",
        ),
        (
            {
                "x": {"members": "ab", "swap": False, "exclusive": True},
                "y": {"members": "c", "swap": False, "exclusive": False, "persistent": True},
            },
            "ad ae bd be",
        ),
        ({"x": {"members": "a", "persistent": True}}, "ab ac ad ae"),
    ],
)
def test_which_models_are_kept_apart(groups: dict[str, dict[str, Any]], apart: str) -> None:
    assert pairs(**groups) == set(apart.split())


def read(
    tmp_path: Path, groups: Any, *, models: str = "abc", pinned: str = ""
) -> tuple[Catalogue, list[str], list[str]]:
    """Return (table, fatal problems, warnings) of a table with these groups."""
    rows = {alias: {"command": "sh serve ${PORT}", "pinned": alias in pinned} for alias in models}
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"models": rows, "groups": groups}))
    catalogue, problems = read_catalogue(ModelSettings(), config)
    return (
        catalogue,
        [str(one) for one in problems if one.is_fatal],
        [str(one) for one in problems if not one.is_fatal],
    )


def test_a_table_has_the_conflicts_of_its_groups(tmp_path: Path) -> None:
    catalogue, fatal, warnings = read(tmp_path, {"x": {"members": ["a", "b"], "exclusive": False}})
    assert (fatal, warnings) == ([], [])
    assert catalogue.conflicts == {"a": frozenset("b"), "b": frozenset("a")}


@pytest.mark.parametrize(
    ("groups", "text"),
    [
        ({"x": {"members": []}}, "groups.x.members: "),
        ({"x": {}}, "groups.x.members: .* It is missing"),
        ({"x": {"members": ["a"], "size": 3}}, "groups.x.size: .* Unknown key"),
        ({"x": {"members": ["a", "z"]}}, "groups.x.members: .* There is no model 'z'"),
        (
            {"x": {"members": ["a"]}, "y": {"members": ["b", "a"]}},
            "groups.y.members: .* The model 'a' is in the group 'x' already",
        ),
        ({"x": {"members": "a"}}, "groups.x.members: .* It must be a list"),
    ],
)
def test_groups_that_cannot_be_are_refused(tmp_path: Path, groups: Any, text: str) -> None:
    _, fatal, _ = read(tmp_path, groups)
    assert len(fatal) == 1
    assert re.search(text, fatal[0]), fatal[0]


def test_pinned_models_that_are_kept_apart_are_warned_of(tmp_path: Path) -> None:
    _, fatal, warnings = read(tmp_path, {"x": {"members": ["a", "b"]}}, pinned="ab")
    assert fatal == []
    assert len(warnings) == 1
    assert "'a' and 'b' are pinned and never loaded together" in warnings[0]


def test_changes_of_groups_are_told(tmp_path: Path) -> None:
    before = read(tmp_path, {"x": {"members": ["a"]}, "y": {"members": ["b"]}})[0]
    after = read(tmp_path, {"x": {"members": ["a"], "swap": False}, "y": {"members": ["b"]}})[0]
    assert differences(before, after) == ["The group x changes."]
