"""What is done for declared adapters, and the state of each: tables, no clock and no engine."""

import pytest

from appliance.engines.lora.plan import (
    Adapter,
    Failure,
    HostView,
    find_base_model,
    find_involved,
    find_state,
    guarded_names,
    is_target,
    next_steps,
    without_backend,
)

A = Adapter("style", "/adapters/style", "tiny")
ONLY_W = Adapter("style", "/a", "tiny", backend="w")
LEAVING = Adapter("style", "/adapters/style", "tiny", is_wanted=False, unload_from=("v",))
FAILED = {("style", "v"): Failure(1, 0.0, "no such folder")}


def view(
    name: str = "v",
    *,
    up: bool = True,
    has: tuple[str, ...] = (),
    bases: tuple[str, ...] = ("tiny",),
    can_load: bool = True,
) -> HostView:
    return HostView(name, "vllm", up, frozenset(bases), frozenset(has), can_load=can_load)


def steps(
    adapters: list[Adapter],
    views: list[HostView],
    failures: dict[tuple[str, str], Failure] | None = None,
    now_s: float = 100.0,
    busy: tuple[tuple[str, str], ...] = (),
) -> list[str]:
    return [
        f"{step.verb} {step.adapter.name} {step.backend}"
        for step in next_steps(adapters, views, failures or {}, now_s, busy=busy)[0]
    ]


@pytest.mark.parametrize(
    ("adapters", "views", "expected"),
    [
        ([], [view()], []),
        ([A], [], []),
        ([A], [view()], ["load style v"]),
        ([A], [view(has=("style",))], []),
        ([A], [view(up=False)], []),
        ([A], [view(bases=("other",))], []),
        ([A], [view(bases=("other",), has=("style",))], ["unload style v"]),  # another base model by now
        ([A], [view(can_load=False)], []),
        ([A], [view("v"), view("w", has=("style",)), view("x")], ["load style v", "load style x"]),
        ([ONLY_W], [view("v"), view("w")], ["load style w"]),
        ([ONLY_W], [view("v", has=("style",)), view("w", has=("style",))], ["unload style v"]),
        ([LEAVING], [view(has=("style",))], ["unload style v"]),
        ([LEAVING], [view()], ["unload style v"]),  # it may have it without our knowing
        ([LEAVING], [view(up=False)], []),
        ([LEAVING], [view("w")], []),
        ([A, Adapter("two", "/b", "tiny")], [view(has=("two",))], ["load style v"]),
    ],
)
def test_backends_are_brought_to_what_is_declared(
    adapters: list[Adapter], views: list[HostView], expected: list[str]
) -> None:
    assert steps(adapters, views) == expected


def test_pairs_with_a_command_under_way_are_left_alone() -> None:
    assert steps([A], [view("v"), view("w")], busy=(("style", "v"),)) == ["load style w"]


@pytest.mark.parametrize(("count", "back_off_s"), [(1, 1.0), (2, 2.0), (7, 60.0), (99, 60.0)])
def test_a_failure_is_retried_later_and_later(count: int, back_off_s: float) -> None:
    failures = {("style", "v"): Failure(count, 100.0, "no")}
    assert next_steps([A], [view()], failures, 100.0) == ([], back_off_s)
    assert steps([A], [view()], failures, 100.0 + back_off_s) == ["load style v"]
    assert steps([A], [view("v"), view("w")], failures) == ["load style w"]


@pytest.mark.parametrize(
    ("adapter", "one", "failures", "busy", "expected"),
    [
        (LEAVING, view(up=False), {}, (), ("unloading", "waiting for the backend")),  # 1
        (LEAVING, view(), FAILED, (), ("unloading", "no such folder")),
        (A, view(has=("style",)), {}, (), ("loaded", "")),  # 2
        (A, view(), {}, (("style", "v"),), ("loading", "")),  # 3
        (A, view(up=False), {}, (), ("down", "loaded as soon as the backend is up")),  # 4
        (A, view(up=False), FAILED, (), ("down", "loaded as soon as the backend is up")),
        (A, view(), FAILED, (), ("failed", "no such folder")),  # 5
        (A, view(), {}, (), ("pending", "")),  # 6
    ],
)
def test_state_and_reason_on_each_backend(adapter, one, failures, busy, expected) -> None:
    assert find_state(adapter, one, failures, busy) == expected


@pytest.mark.parametrize(
    ("wanted", "backend", "views", "base"),
    [
        ("tiny", "", [view()], "tiny"),
        ("unknown", "", [view()], ["tiny"]),
        ("", "", [view("v"), view("w")], "tiny"),
        ("", "", [view("v"), view("w", bases=("other",))], ["tiny", "other"]),
        ("", "w", [view("v"), view("w", bases=("other",))], "other"),
        ("tiny", "w", [view("v"), view("w", bases=("other",))], ["other"]),
        ("", "", [view("v"), view("w", bases=("other",), can_load=False)], "tiny"),
        ("", "", [], []),
    ],
)
def test_the_base_model_is_found_if_there_is_only_one(wanted, backend, views, base) -> None:
    assert find_base_model(wanted, backend, views) == base


@pytest.mark.parametrize(
    ("adapter", "one", "expected"),
    [
        (A, view(), True),
        (A, view(bases=()), False),
        (A, view(can_load=False), False),
        (ONLY_W, view("v"), False),
        (ONLY_W, view("w"), True),
    ],
)
def test_targets_serve_the_base_model_and_can_load(adapter, one, expected) -> None:
    assert is_target(adapter, one) is expected


@pytest.mark.parametrize(
    ("one", "adapters", "names"),
    [
        (view("v"), [A, Adapter("only", "/o", "tiny", backend="w"), LEAVING], {"style"}),
        (view("w"), [A, Adapter("only", "/o", "tiny", backend="w")], {"style", "only"}),
        (view("x", bases=("other",)), [A], set()),
        (view("x", bases=("other",), has=("style",)), [A], {"style"}),
    ],
)
def test_declared_names_are_guarded_where_they_belong(one, adapters, names) -> None:
    assert guarded_names(one, adapters) == names


def test_involved_backends_are_targets_and_those_that_have_it() -> None:
    other = view("w", bases=("other",))
    has_it = view("x", bases=("other",), has=("style",))
    assert [one.backend for one in find_involved(A, [view("v"), other, has_it])] == ["v", "x"]
    assert [one.backend for one in find_involved(LEAVING, [view("v"), view("w")])] == ["v"]


@pytest.mark.parametrize(
    ("adapter", "existing", "left"),
    [
        (("v", "w"), {"v", "w"}, ("w",)),
        (("v", "w"), {"v"}, None),  # w was removed
        (("v",), {"v"}, None),
    ],
)
def test_an_adapter_is_gone_once_all_have_unloaded_it(adapter, existing, left) -> None:
    leaving = Adapter("style", "/a", "tiny", is_wanted=False, unload_from=adapter)
    remaining = without_backend(leaving, "v", existing)
    assert (remaining.unload_from if remaining else None) == left


def test_a_wanted_adapter_stays_when_one_unloads_it() -> None:
    assert without_backend(Adapter("style", "/a", "tiny", unload_from=("v",)), "v", {"v"}) == Adapter(
        "style", "/a", "tiny"
    )
