"""Groups of the model table: which models they keep apart, and what is refused."""

import json
import random
import re
import sys
from collections.abc import Callable
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


@pytest.mark.parametrize("seed", range(20))
def test_random_groups_keep_apart_what_the_rules_say(seed: int) -> None:
    rng = random.Random(seed)
    names = [f"m{number}" for number in range(30)]
    groups: dict[str, Group] = {}
    free = rng.sample(names, 25)
    while free:
        size = rng.randint(1, 8)
        members, free = tuple(free[:size]), free[size:]
        swap, exclusive, persistent = (rng.random() < 0.5 for _ in range(3))
        groups[members[0]] = Group(members=members, swap=swap, exclusive=exclusive, persistent=persistent)
    group_of = {name: group for group in groups.values() for name in group.members}
    found = conflicts_of(groups, names)
    for one in names:
        wanted = {
            other for other in names if other != one and by_the_rules(group_of.get(one), group_of.get(other))
        }
        apart = found.get(one, frozenset())
        assert (set(apart), len(apart), bool(apart)) == (wanted, len(wanted), bool(wanted))
        assert {other for other in names if other in apart} == wanted
        assert frozenset(names) & apart == wanted
        assert (one in found) == bool(wanted)


def by_the_rules(one: Group | None, other: Group | None) -> bool:
    """Whether models of two groups are never loaded together, by the rules in docs/models.md."""
    if one is not None and one is other:
        return one.swap
    return any(
        group is not None and group.exclusive and not (beside is not None and beside.persistent)
        for group, beside in ((one, other), (other, one))
    )


def count_steps(work: Callable[[], Any]) -> tuple[Any, int]:
    """Return what `work` returns, and how many lines it ran through."""
    steps = 0

    def trace(frame: Any, event: str, argument: Any) -> Any:
        nonlocal steps
        steps += 1
        return trace

    sys.settrace(trace)
    try:
        return work(), steps
    finally:
        sys.settrace(None)


@pytest.mark.parametrize("size", [1, 1000])
def test_work_for_groups_grows_with_the_models_alone(size: int) -> None:
    names = [f"m{number}" for number in range(8000)]
    groups = {
        f"g{at}": Group(members=tuple(names[at : at + size]), swap=True) for at in range(0, len(names), size)
    }
    found, steps = count_steps(lambda: conflicts_of(groups, names))
    assert steps < 100 * len(names)  # for each pair it would be 64 million
    assert len(found) == 8000
    assert len(found["m17"]) == 7999


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
