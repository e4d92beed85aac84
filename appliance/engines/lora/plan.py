"""What must be done so that every backend has the adapters that are declared for it, and how things stand. Decisions only."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

State = Literal["loaded", "loading", "pending", "failed", "down", "unloading"]
BACK_OFF_S = (
    1.0,
    2.0,
    4.0,
    8.0,
    16.0,
    30.0,
    60.0,
)  # after the first, second … failure in a row of one adapter on one backend


@dataclass(frozen=True, slots=True)
class Adapter:
    """One declared adapter.

    path        folder or file, as the engines see it; source: where it was downloaded from ("" = it was there)
    backend     the only one that is to have it ("" = every one that serves the base model)
    is_pinned   an engine that unloads adapters by itself is not to unload this one (SGLang)
    is_wanted   False: it is to go, and `leaves` names the backends that could not be told so yet
    """

    name: str
    path: str
    base_model: str
    source: str = ""
    backend: str = ""
    is_pinned: bool = False
    is_wanted: bool = True
    leaves: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class HostView:
    """A backend as it concerns adapters.

    is_up      it can be told now, and what it has is known
    bases      the models that it serves besides adapters
    has        declared adapters that it has; listed: every adapter that it tells of → its path ("" = not told)
    loads      whether engines of its kind can be told to load adapters at all
    """

    backend: str
    kind: str
    is_up: bool
    bases: frozenset[str]
    has: frozenset[str] = frozenset()
    listed: Mapping[str, str] = field(default_factory=dict)
    loads: bool = True


@dataclass(frozen=True, slots=True)
class Failure:
    """The latest failures in a row of one adapter on one backend. Times are monotonic."""

    count: int
    at_s: float
    error: str

    @property
    def again_s(self) -> float:
        return self.at_s + BACK_OFF_S[min(self.count, len(BACK_OFF_S)) - 1]


@dataclass(frozen=True, slots=True)
class PlanStep:
    """Load or unload one adapter on one backend."""

    verb: Literal["load", "unload"]
    adapter: Adapter
    backend: str


Failures = Mapping[tuple[str, str], Failure]  # by (adapter, backend)


def fits(adapter: Adapter, view: HostView) -> bool:
    """Whether the backend is one of those that are to have it."""
    return view.loads and adapter.backend in {"", view.backend} and adapter.base_model in view.bases


def next_steps(
    adapters: Collection[Adapter],
    views: Sequence[HostView],
    failures: Failures,
    now_s: float,
    *,
    busy: Collection[tuple[str, str]] = (),
) -> tuple[list[PlanStep], float | None]:
    """Give what is to be done now, and in how many seconds more (None = nothing more that time alone brings).

    1. somebody is at it                              → nothing
    2. the backend is not up                          → nothing: its coming up is told
    3. it has what is declared for it                 → nothing
    4. it has not, or has what is to go; it failed    → later
    5. it has not what is declared for it             → load
    6. it has what is not, or no longer, meant for it → unload
    """
    steps, waits = [], []
    for adapter in adapters:
        for view in views:
            key = (adapter.name, view.backend)
            if key in busy or not view.is_up:  # 1, 2
                continue
            is_meant, has_it = adapter.is_wanted and fits(adapter, view), adapter.name in view.has
            if is_meant == has_it and view.backend not in adapter.leaves:  # 3
                continue
            failure = failures.get(key)
            if failure is not None and failure.again_s > now_s:  # 4
                waits.append(failure.again_s - now_s)
                continue
            steps.append(PlanStep("load" if is_meant else "unload", adapter, view.backend))  # 5, 6
    return steps, min(waits, default=None)


def state_of(
    adapter: Adapter, view: HostView, failures: Failures, busy: Collection[tuple[str, str]] = ()
) -> tuple[State, str]:
    """Give (how one adapter stands on one backend that is to have it, why)."""
    failure = failures.get((adapter.name, view.backend))
    if view.backend in adapter.leaves or not adapter.is_wanted:
        return "unloading", failure.error if failure else "the backend could not be told yet"
    if adapter.name in view.has:
        return "loaded", ""
    if (adapter.name, view.backend) in busy:
        return "loading", ""
    if not view.is_up:
        return "down", "it is loaded as soon as the backend is up"
    return ("failed", failure.error) if failure else ("pending", "")


def concerned(adapter: Adapter, views: Sequence[HostView]) -> list[HostView]:
    """Give the backends that have to do with it: those that are to have it, those that have it, and those that it has to leave."""
    return [
        view
        for view in views
        if (adapter.is_wanted and fits(adapter, view))
        or adapter.name in view.has
        or view.backend in adapter.leaves
    ]


def names_for(view: HostView, adapters: Collection[Adapter]) -> frozenset[str]:
    """Give the names that this backend may serve only when it was seen to have them."""
    return frozenset(
        a.name for a in adapters if fits(a, view) or view.backend in a.leaves or a.name in view.has
    )


def base_of(wanted: str, backend: str, views: Sequence[HostView]) -> str | list[str]:
    """Give the base model of a new adapter, or the candidates where that does not say itself.

    1. it was named                                      → that one, where somebody serves it
    2. one backend is meant, or all; they have one model → that one
    """
    own = [view for view in views if view.loads and backend in {"", view.backend}]
    bases = list(dict.fromkeys(base for view in own for base in sorted(view.bases)))
    if wanted:
        return wanted if wanted in bases else bases
    return bases[0] if len(bases) == 1 else bases


def has_left(adapter: Adapter, backend: str, known: Collection[str]) -> Adapter | None:
    """Give an adapter that one backend is rid of, and every backend that there is no longer; None = nothing of it is left."""
    leaves = tuple(name for name in adapter.leaves if name != backend and name in known)
    if not adapter.is_wanted and not leaves:
        return None
    return Adapter(
        adapter.name,
        adapter.path,
        adapter.base_model,
        adapter.source,
        adapter.backend,
        adapter.is_pinned,
        adapter.is_wanted,
        leaves,
    )
