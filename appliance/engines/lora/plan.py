"""Decisions about LoRA adapters: which commands are due on which backend, and an adapter's state on each.

Pure: no clock, no I/O. The reconciler carries the steps out.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

State = Literal["loaded", "loading", "pending", "failed", "down", "unloading"]
Verb = Literal["load", "unload"]
# Seconds after the first, second … failure in a row of one adapter on one backend.
BACK_OFF_S = (1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 60.0)


@dataclass(frozen=True, slots=True)
class Adapter:
    """One declared adapter.

    Attributes:
        path: Folder or file, as the engines see it.
        source: Where it was downloaded from; "" = it was already there.
        backend: The only backend that is to have it; "" = every one that serves the base model.
        is_pinned: An engine that unloads adapters by itself keeps this one (SGLang).
        is_wanted: False = it is being unloaded.
        unload_from: Backends on which it must still be unloaded.
        is_configured: It stands in the configuration file, and is not stored besides.
    """

    name: str
    path: str
    base_model: str
    source: str = ""
    backend: str = ""
    is_pinned: bool = False
    is_wanted: bool = True
    unload_from: tuple[str, ...] = ()
    is_configured: bool = False


@dataclass(frozen=True, slots=True)
class HostView:
    """A backend as far as adapters are concerned.

    Attributes:
        is_up: It accepts commands now, and what it has is known.
        bases: The models that it serves besides adapters.
        loaded: Declared adapters that it has.
        listed: Every adapter that it lists → its path ("" = unknown).
        can_load: Whether engines of its kind can load adapters at run time.
        names_adapters: Whether an adapter has the name that it was loaded under; else its file's.
    """

    backend: str
    kind: str
    is_up: bool
    bases: frozenset[str]
    loaded: frozenset[str] = frozenset()
    listed: Mapping[str, str] = field(default_factory=dict)
    can_load: bool = True
    names_adapters: bool = True


@dataclass(frozen=True, slots=True)
class Failure:
    """The latest failures in a row of one adapter on one backend; `at_s` is monotonic."""

    count: int
    at_s: float
    error: str

    @property
    def retry_at_s(self) -> float:
        """When it is tried again (monotonic)."""
        return self.at_s + BACK_OFF_S[min(self.count, len(BACK_OFF_S)) - 1]


@dataclass(frozen=True, slots=True)
class PlanStep:
    """Load or unload one adapter on one backend."""

    verb: Verb
    adapter: Adapter
    backend: str


Pair = tuple[str, str]  # (adapter, backend)
Failures = Mapping[Pair, Failure]


def is_target(adapter: Adapter, view: HostView) -> bool:
    """Whether the backend is one of those that are to have the adapter."""
    return view.can_load and adapter.backend in {"", view.backend} and adapter.base_model in view.bases


def next_steps(
    adapters: Collection[Adapter],
    views: Sequence[HostView],
    failures: Failures,
    now_s: float,
    *,
    busy: Collection[Pair] = (),
) -> tuple[list[PlanStep], float | None]:
    """Decide what to do now.

    1. a command or a change is under way              → nothing
    2. the backend is not up                           → nothing: the caller decides again when it comes up
    3. it has what is declared for it, and no more     → nothing
    4. it differs, and the latest command failed       → later
    5. it lacks an adapter that is declared for it     → load
    6. it has one that is not, or no longer, for it    → unload

    Args:
        now_s: Monotonic seconds.
        busy: The pairs of adapter and backend that case 1 is about.

    Returns:
        The steps, and the seconds until the next retry (None = no retry is due).
    """
    steps, waits_s = [], []
    for adapter in adapters:
        for view in views:
            pair = (adapter.name, view.backend)
            if pair in busy or not view.is_up:  # 1, 2
                continue
            should_have = adapter.is_wanted and is_target(adapter, view)
            has_it = adapter.name in view.loaded
            if should_have == has_it and view.backend not in adapter.unload_from:  # 3
                continue
            failure = failures.get(pair)
            if failure is not None and failure.retry_at_s > now_s:  # 4
                waits_s.append(failure.retry_at_s - now_s)
                continue
            steps.append(PlanStep("load" if should_have else "unload", adapter, view.backend))  # 5, 6
    return steps, min(waits_s, default=None)


def find_state(
    adapter: Adapter, view: HostView, failures: Failures, busy: Collection[Pair] = ()
) -> tuple[State, str]:
    """Return an adapter's state on one backend that is to have it, and the reason ("" = none).

    1. it is to be unloaded there     → unloading
    2. the backend has it             → loaded
    3. a command is under way         → loading
    4. the backend is not up          → down
    5. the latest command failed      → failed
    6. otherwise                      → pending
    """
    failure = failures.get((adapter.name, view.backend))
    if view.backend in adapter.unload_from or not adapter.is_wanted:  # 1
        return "unloading", failure.error if failure else "waiting for the backend"
    if adapter.name in view.loaded:  # 2
        return "loaded", ""
    if (adapter.name, view.backend) in busy:  # 3
        return "loading", ""
    if not view.is_up:  # 4
        return "down", "loaded as soon as the backend is up"
    return ("failed", failure.error) if failure else ("pending", "")  # 5, 6


def find_involved(adapter: Adapter, views: Sequence[HostView]) -> list[HostView]:
    """Return the backends that are to have the adapter, that have it, or that must still unload it."""
    return [
        view
        for view in views
        if (adapter.is_wanted and is_target(adapter, view))
        or adapter.name in view.loaded
        or view.backend in adapter.unload_from
    ]


def guarded_names(view: HostView, adapters: Collection[Adapter]) -> frozenset[str]:
    """Return the names that this backend may serve only after it was seen to have them."""
    return frozenset(
        one.name
        for one in adapters
        if is_target(one, view) or view.backend in one.unload_from or one.name in view.loaded
    )


def find_base_model(wanted: str, backend: str, views: Sequence[HostView]) -> str | list[str]:
    """Return the base model of a new adapter, or the candidates if there is no single one.

    1. it is named                                  → that one, if a backend serves it
    2. it is not named, and only one can be meant   → that one

    Args:
        wanted: Its name; "" = not named.
        backend: The only backend that is to have the adapter; "" = all.
        views: All backends.
    """
    hosts = [view for view in views if view.can_load and backend in {"", view.backend}]
    bases = list(dict.fromkeys(base for view in hosts for base in sorted(view.bases)))
    if wanted:  # 1
        return wanted if wanted in bases else bases
    return bases[0] if len(bases) == 1 else bases  # 2


def without_backend(adapter: Adapter, backend: str, existing: Collection[str]) -> Adapter | None:
    """Return the adapter after `backend` unloaded it; None = it is unloaded everywhere.

    Args:
        existing: Names of the backends that there are; those that were removed need not unload it.
    """
    unload_from = tuple(name for name in adapter.unload_from if name != backend and name in existing)
    if not adapter.is_wanted and not unload_from:
        return None
    return replace(adapter, unload_from=unload_from)
