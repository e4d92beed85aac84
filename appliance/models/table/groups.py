"""Groups of the model table: which models are loaded together, and which never. Decisions only."""

from collections.abc import Iterable, Mapping
from typing import Annotated

from pydantic import Field

from appliance.models.table.section import Section


class Group(Section):
    """Models that swap with each other, or with all others as one."""

    members: Annotated[tuple[str, ...], Field(min_length=1, max_length=1000)] = Field(
        description="Names of its models; a model may be in one group"
    )
    swap: bool = Field(default=True, description="Only one of its models is loaded at a time")
    exclusive: bool = Field(
        default=True, description="While one of its models is loaded, no model outside the group is"
    )
    persistent: bool = Field(
        default=False, description="Its models are not unloaded for those of an exclusive group"
    )


def conflicts_of(groups: Mapping[str, Group], aliases: Iterable[str]) -> dict[str, frozenset[str]]:
    """Return for each model the models that are never loaded together with it; only models that have some.

    1. in the same group                    → `swap` of the group
    2. one is in an exclusive group         → never together, unless the other's group is persistent
    3. else                                 → together
    """
    group_of = {alias: group for group in groups.values() for alias in group.members}
    names = list(dict.fromkeys(aliases))

    def is_conflict(one: str, other: str) -> bool:
        first, second = group_of.get(one), group_of.get(other)
        if first is not None and first is second:  # 1
            return first.swap
        return any(  # 2, 3
            group is not None and group.exclusive and not (beside is not None and beside.persistent)
            for group, beside in ((first, second), (second, first))
        )

    if not group_of:
        return {}
    found = {one: frozenset(b for b in names if b != one and is_conflict(one, b)) for one in names}
    return {one: others for one, others in found.items() if others}


def find_group_problems(groups: Mapping[str, Group], aliases: Iterable[str]) -> list[tuple[str, str]]:
    """Return what is wrong with groups, as (key below `groups`, sentence)."""
    known, seen = set(aliases), dict[str, str]()
    found = []
    for name, group in groups.items():
        for alias in dict.fromkeys(group.members):
            if alias not in known:
                found.append((f"{name}.members", f"There is no model {alias!r}."))
            elif alias in seen:
                found.append(
                    (f"{name}.members", f"The model {alias!r} is in the group {seen[alias]!r} already.")
                )
            seen.setdefault(alias, name)
    return found
