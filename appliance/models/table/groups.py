"""Groups of the model table: which models are loaded together, and which never. Decisions only."""

from collections.abc import Iterable, Iterator, Mapping, Set
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


class Apart(Set[str]):
    """The models that are never loaded together with one model: a set that shares its parts with others.

    Thousands of models in exclusive groups would else need a set of thousands each.

    Args:
        alias: The model itself, which is not in it.
        own: Those of its group.
        is_swapped: Whether those of its group are in it.
        others: Sets of models, without common members; of these, those outside of its group are in it.
    """

    __slots__ = ("_alias", "_is_swapped", "_others", "_own")

    def __init__(
        self, alias: str, own: frozenset[str], others: tuple[frozenset[str], ...], *, is_swapped: bool
    ) -> None:
        self._alias, self._own, self._others, self._is_swapped = alias, own, others, is_swapped

    def __contains__(self, name: object) -> bool:
        if name == self._alias:
            return False
        return self._is_swapped if name in self._own else any(name in others for others in self._others)

    def __iter__(self) -> Iterator[str]:
        yield from (name for name in self._own if self._is_swapped and name != self._alias)
        yield from (name for others in self._others for name in others if name not in self._own)

    def __len__(self) -> int:
        first = next(iter(self._own), None)  # the models of a group are all in the same set, or in none
        outside = sum(map(len, self._others))
        if first is not None and any(first in others for others in self._others):
            outside -= len(self._own)
        return outside + (len(self._own) - 1 if self._is_swapped else 0)

    @classmethod
    def _from_iterable(cls, names: Iterable[str]) -> frozenset[str]:  # type: ignore[override]
        return frozenset(names)


def conflicts_of(groups: Mapping[str, Group], aliases: Iterable[str]) -> dict[str, Set[str]]:
    """Return for each model the models that are never loaded together with it; only models that have some.

    1. in the same group                    → `swap` of the group
    2. one is in an exclusive group         → never together, unless the other's group is persistent
    3. else                                 → together

    It takes time and memory for each model, not for each pair: of the other groups only matters what they
    are (exclusive, persistent), so there are at most four sets of models, which all share.
    """
    group_of = {alias: group for group in groups.values() for alias in group.members}
    if not group_of:
        return {}
    names = list(dict.fromkeys(aliases))
    kinds: dict[_Kind, list[str]] = {}
    for name in names:
        kinds.setdefault(_kind_of(group_of.get(name)), []).append(name)
    models = {kind: frozenset(some) for kind, some in kinds.items()}
    others = {
        kind: tuple(some for other, some in models.items() if _are_apart(kind, other)) for kind in models
    }
    known = frozenset(names)
    members = {id(group): known.intersection(group.members) for group in groups.values()}
    found = {}
    for name in names:
        group = group_of.get(name)
        own = frozenset[str]() if group is None else members[id(group)]
        is_swapped = group is not None and group.swap
        found[name] = Apart(name, own, others[_kind_of(group)], is_swapped=is_swapped)
    return {one: apart for one, apart in found.items() if apart}


_Kind = tuple[bool, bool]  # of a model's group: exclusive, persistent


def _kind_of(group: Group | None) -> _Kind:
    return (False, False) if group is None else (group.exclusive, group.persistent)


def _are_apart(one: _Kind, other: _Kind) -> bool:
    """Whether models of two groups of these kinds are never loaded together."""
    return (one[0] and not other[1]) or (other[0] and not one[1])


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
