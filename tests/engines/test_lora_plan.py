"""What is done for declared adapters, and how they stand: tables, no clock and no engine."""

import pytest

from appliance.engines.lora.plan import (
    Adapter,
    Failure,
    HostView,
    base_of,
    concerned,
    fits,
    has_left,
    names_for,
    next_steps,
    state_of,
)

A = Adapter("style", "/adapters/style", "tiny")


def view(
    name: str = "v",
    *,
    up: bool = True,
    has: tuple[str, ...] = (),
    bases: tuple[str, ...] = ("tiny",),
    loads: bool = True,
) -> HostView:
    return HostView(name, "vllm", up, frozenset(bases), frozenset(has), loads=loads)


def told(
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


GONE = Adapter("style", "/adapters/style", "tiny", is_wanted=False, leaves=("v",))


@pytest.mark.parametrize(
    ("adapters", "views", "steps"),
    [
        ([], [view()], []),
        ([A], [], []),
        ([A], [view()], ["load style v"]),
        ([A], [view(has=("style",))], []),
        ([A], [view(up=False)], []),
        ([A], [view(bases=("other",))], []),
        (
            [A],
            [view(bases=("other",), has=("style",))],
            ["unload style v"],
        ),  # its base model is not served there any more
        ([A], [view(loads=False)], []),
        ([A], [view("v"), view("w", has=("style",)), view("x")], ["load style v", "load style x"]),
        ([Adapter("style", "/a", "tiny", backend="w")], [view("v"), view("w")], ["load style w"]),
        (
            [Adapter("style", "/a", "tiny", backend="w")],
            [view("v", has=("style",)), view("w", has=("style",))],
            ["unload style v"],
        ),
        ([GONE], [view(has=("style",))], ["unload style v"]),
        ([GONE], [view()], ["unload style v"]),  # it may have it without our knowing
        ([GONE], [view(up=False)], []),
        ([GONE], [view("w")], []),
        ([A, Adapter("two", "/b", "tiny")], [view(has=("two",))], ["load style v"]),
    ],
)
def test_every_backend_is_brought_to_have_what_is_declared(
    adapters: list[Adapter], views: list[HostView], steps: list[str]
) -> None:
    assert told(adapters, views) == steps


def test_what_somebody_is_at_is_left_alone() -> None:
    assert told([A], [view("v"), view("w")], busy=(("style", "v"),)) == ["load style w"]


def test_a_failure_is_tried_again_later_and_later() -> None:
    for count, rest_s in ((1, 1.0), (2, 2.0), (7, 60.0), (99, 60.0)):
        failures = {("style", "v"): Failure(count, 100.0, "no")}
        assert next_steps([A], [view()], failures, 100.0) == ([], rest_s)
        assert told([A], [view()], failures, 100.0 + rest_s) == ["load style v"]
        assert told([A], [view("v"), view("w")], failures) == ["load style w"]


@pytest.mark.parametrize(
    ("adapter", "one", "failures", "busy", "state"),
    [
        (A, view(has=("style",)), {}, (), "loaded"),
        (A, view(), {}, (), "pending"),
        (A, view(), {}, (("style", "v"),), "loading"),
        (A, view(up=False), {}, (), "down"),
        (A, view(), {("style", "v"): Failure(1, 0.0, "no such folder")}, (), "failed"),
        (A, view(up=False), {("style", "v"): Failure(1, 0.0, "no such folder")}, (), "down"),
        (GONE, view(up=False), {}, (), "unloading"),
    ],
)
def test_how_it_stands_is_told_for_each_backend(
    adapter,
    one,
    failures,
    busy,
    state,
) -> None:
    assert state_of(adapter, one, failures, busy)[0] == state


def test_why_it_failed_is_told() -> None:
    assert state_of(A, view(), {("style", "v"): Failure(1, 0.0, "no such folder")}) == (
        "failed",
        "no such folder",
    )


@pytest.mark.parametrize(
    ("wanted", "backend", "views", "base"),
    [
        ("tiny", "", [view()], "tiny"),
        ("nobody", "", [view()], ["tiny"]),
        ("", "", [view("v"), view("w")], "tiny"),
        ("", "", [view("v"), view("w", bases=("other",))], ["tiny", "other"]),
        ("", "w", [view("v"), view("w", bases=("other",))], "other"),
        ("tiny", "w", [view("v"), view("w", bases=("other",))], ["other"]),
        ("", "", [view("v"), view("w", bases=("other",), loads=False)], "tiny"),
        ("", "", [], []),
    ],
)
def test_the_base_model_is_found_where_there_is_only_one(wanted, backend, views, base) -> None:
    assert base_of(wanted, backend, views) == base


def test_names_are_kept_from_those_that_are_to_have_them() -> None:
    only = Adapter("only", "/o", "tiny", backend="w")
    assert names_for(view("v"), [A, only, GONE]) == {"style"}
    assert names_for(view("w"), [A, only]) == {"style", "only"}
    assert names_for(view("x", bases=("other",)), [A]) == set()
    assert fits(A, view()) and not fits(A, view(bases=())) and not fits(A, view(loads=False))  # noqa: PT018
    assert [
        one.backend
        for one in concerned(
            A, [view("v"), view("w", bases=("other",)), view("x", bases=("other",), has=("style",))]
        )
    ] == ["v", "x"]


def test_what_goes_is_gone_once_every_backend_is_rid_of_it() -> None:
    two = Adapter("style", "/a", "tiny", is_wanted=False, leaves=("v", "w"))
    assert has_left(two, "v", {"v", "w"}) == Adapter("style", "/a", "tiny", is_wanted=False, leaves=("w",))
    assert has_left(two, "v", {"v"}) is None  # w is no backend any more
    assert has_left(Adapter("style", "/a", "tiny", leaves=("v",)), "v", {"v"}) == Adapter(
        "style", "/a", "tiny"
    )
