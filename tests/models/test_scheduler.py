"""What the scheduler decides, as tables: a state, and the step that follows.

Sizes are in GiB, times in seconds.

Models `a`, `b`, `c` … take 1 GiB and a second to load unless a row says otherwise. There is plenty of memory
unless a row is about memory.
"""

from dataclasses import replace
from typing import Any

import pytest

from appliance.models.scheduler import demand as demand_module
from appliance.models.scheduler.demand import Demand
from appliance.models.scheduler.fit import find_devices
from appliance.models.scheduler.scheduler import (
    DOES_NOT_FIT,
    DUE_COSTS,
    LINGER_COSTS,
    OTHER_LOADS_FIRST,
    RETRY_LATER,
    STAY_LOADS,
    due_after_s,
    eviction_loss,
    linger_s,
    min_stay_s,
    next_step,
    pick_free,
)
from appliance.models.scheduler.state import (
    Drain,
    ModelFacts,
    QueueState,
    Refuse,
    ResidentRunner,
    Resume,
    SchedulerRules,
    SchedulerState,
    Serve,
    Start,
    Stop,
    Wait,
)
from appliance.models.status.views import RAM

GIB = 1 << 30
SWAP_S = 2.0  # what a swap of two models of a second each costs
DUE_S = DUE_COSTS * SWAP_S  # how long a queue of normal priority waits for it
LINGERS_S = LINGER_COSTS * SWAP_S  # how long an idle model is kept before it
OFTEN = 1 / LINGERS_S  # requests a second that keep it
BUSY_STAYED_S = 100.0  # ready for longer than any stay


def queue(alias: str, oldest_s: float = 0.0, **how: Any) -> QueueState:
    return QueueState(alias, **({"requests": 1, "oldest_s": oldest_s} | how))


def loads(alias: str, oldest_s: float = 0.0, **how: Any) -> QueueState:
    return QueueState(alias, loads=1, oldest_s=oldest_s, **how)


def idle(
    key: int,
    alias: str,
    idle_s: float = 60.0,
    *,
    on: int = RAM,
    gib: float = 1,
    **how: Any,
) -> ResidentRunner:
    return ResidentRunner(
        key, alias, "ready", memory={on: int(gib * GIB)}, idle_s=idle_s, ready_s=BUSY_STAYED_S, **how
    )


def busy(
    key: int,
    alias: str,
    *,
    on: int = RAM,
    gib: float = 1,
    **how: Any,
) -> ResidentRunner:
    return ResidentRunner(
        key, alias, "ready", **({"active": 1, "memory": {on: int(gib * GIB)}, "ready_s": BUSY_STAYED_S} | how)
    )


def loading(
    key: int,
    alias: str,
    *,
    on: int = RAM,
    gib: float = 1,
    **how: Any,
) -> ResidentRunner:
    return ResidentRunner(key, alias, "loading", memory={on: int(gib * GIB)}, **how)


def stopping(
    key: int,
    alias: str,
    *,
    on: int = RAM,
    gib: float = 1,
    **how: Any,
) -> ResidentRunner:
    return ResidentRunner(key, alias, "stopping", memory={on: int(gib * GIB)}, **how)


def model(alias: str, gib: float = 1, **how: Any) -> ModelFacts:
    return ModelFacts(alias, int(gib * GIB), **how)


def scheduler_state(
    *parts: QueueState | ResidentRunner | ModelFacts,
    places: int = 3,
    free: dict[int, float] | float = 100,
    total: dict[int, float] | float = 100,
    margin: float = 0,
    **rules: Any,
) -> SchedulerState:
    """Make a state of its parts; a model without facts is an ordinary one.

    `free`, `total`: GiB, of RAM or by device.
    """
    queues = [part for part in parts if isinstance(part, QueueState)]
    facts = {one.alias: ModelFacts(one.alias, GIB) for one in queues} | {
        part.alias: part for part in parts if isinstance(part, ModelFacts)
    }
    sizes = [
        {index: int(size * GIB) for index, size in (some if isinstance(some, dict) else {RAM: some}).items()}
        for some in (free, total)
    ]
    return SchedulerState(
        queues,
        [part for part in parts if isinstance(part, ResidentRunner)],
        facts,
        *sizes,
        SchedulerRules(places, margin_bytes=int(margin * GIB), **rules),
    )


def table(*rows: tuple[str, SchedulerState, Any]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(
        ("state", "step"), [pytest.param(state, step, id=name) for name, state, step in rows]
    )


def waits(state: SchedulerState, alias: str) -> str:
    """Return what a queue waits for, where nothing is to be done."""
    step = next_step(state)
    assert isinstance(step, Wait), step
    return step.reasons[alias]


# ---- the order of next_step


@table(
    ("no-request-waits", scheduler_state(), Wait()),
    ("1-a-free-slot", scheduler_state(queue("a"), idle(1, "a")), Serve("a", 1)),
    (
        "1-parallel-slots-are-used",
        scheduler_state(queue("a"), busy(1, "a", slots=4, active=3)),
        Serve("a", 1),
    ),
    (
        "1-even-if-others-are-due",
        scheduler_state(queue("b", 99), queue("a"), busy(1, "a", slots=2), places=1),
        Serve("a", 1),
    ),
    (
        "1-a-loaded-model-that-failed-before",
        scheduler_state(queue("a"), model("a", is_failed=True), idle(1, "a")),
        Serve("a", 1),
    ),
    ("2-failed", scheduler_state(queue("a"), model("a", is_failed=True)), Refuse("a", "failed")),
    (
        "2-failed-for-an-operator-too",
        scheduler_state(loads("a"), model("a", is_failed=True)),
        Refuse("a", "failed"),
    ),
    ("3-expired", scheduler_state(idle(1, "a", expires_in_s=0.0)), Stop(1, "idle")),
    (
        "3-before-a-load-needs-its-memory",
        scheduler_state(queue("b"), idle(1, "a", expires_in_s=0.0)),
        Stop(1, "idle"),
    ),
    (
        "3-not-while-a-request-waits-for-it",
        scheduler_state(loads("a"), idle(1, "a", expires_in_s=0.0)),
        Wait(None, {"a": "all its slots are busy"}),
    ),
    ("3-nor-while-it-works", scheduler_state(busy(1, "a", expires_in_s=0.0)), Wait()),
    ("3-nor-pinned", scheduler_state(idle(1, "a", expires_in_s=0.0, is_pinned=True)), Wait()),
    ("4-drained-for-no-queue", scheduler_state(busy(1, "a", is_draining=True)), Resume(1)),
    ("4-and-idle-by-now", scheduler_state(idle(1, "a", is_draining=True)), Resume(1)),
    (
        "4-although-its-own-queue-waits",
        scheduler_state(queue("a"), idle(1, "a", is_draining=True), places=1),
        Resume(1),
    ),
    ("5-not-loaded", scheduler_state(queue("a")), Start("a", (RAM,))),
    ("5-loaded-by-an-operator", scheduler_state(loads("a")), Start("a", (RAM,))),
    (
        "6-until-it-expires",
        scheduler_state(idle(1, "a", expires_in_s=7.0), idle(2, "b", expires_in_s=9.0)),
        Wait(7.0),
    ),
    ("6-without-expiry", scheduler_state(idle(1, "a")), Wait()),
)
def test_order_of_decisions(state: SchedulerState, step: Any) -> None:
    assert next_step(state) == step


@pytest.mark.parametrize(
    ("servers", "key"),
    [
        pytest.param([busy(1, "a", slots=4, active=2), busy(2, "a", slots=4, active=1)], 2, id="least-busy"),
        pytest.param(
            [busy(1, "a", slots=2, active=1), busy(2, "a", slots=8, active=2)], 2, id="by-share-of-its-slots"
        ),
        pytest.param([idle(2, "a"), idle(1, "a")], 1, id="the-older-of-equals"),
        pytest.param([busy(1, "a", slots=1)], None, id="none-free"),
        pytest.param([idle(1, "a", is_draining=True)], None, id="not-closed"),
        pytest.param([loading(1, "a"), stopping(2, "a")], None, id="only-ready-ones"),
        pytest.param([], None, id="none-there"),
    ],
)
def test_pick_free_takes_the_least_busy_server(servers: list[ResidentRunner], key: int | None) -> None:
    free = pick_free(servers)
    assert (free.serial if free is not None else None) == key


# ---- what a queue waits for


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        pytest.param(scheduler_state(queue("a"), loading(1, "a")), "it is being loaded", id="loading"),
        pytest.param(scheduler_state(queue("a"), busy(1, "a")), "all its slots are busy", id="busy"),
        pytest.param(
            scheduler_state(queue("a", 99), busy(1, "a", is_draining=True), queue("b", 99), places=1),
            "it was unloaded for another model, and is loaded again later",
            id="gave-way",
        ),
        pytest.param(scheduler_state(queue("a"), model("a", blocked_s=3.0)), RETRY_LATER, id="crashed"),
        pytest.param(
            scheduler_state(queue("a"), busy(1, "a"), model("a", replicas=2, blocked_s=3.0)),
            RETRY_LATER,
            id="a-replica-crashed",
        ),
    ],
)
def test_wait_reasons(state: SchedulerState, reason: str) -> None:
    assert waits(state, "a") == reason


def test_pause_after_a_failure_ends_by_itself() -> None:
    assert (
        next_step(
            scheduler_state(queue("a"), model("a", blocked_s=3.0), idle(1, "b", expires_in_s=9.0))
        ).again_s
        == 3.0
    )


def test_model_that_pauses_reserves_nothing() -> None:
    assert next_step(
        scheduler_state(queue("a", 99), model("a", blocked_s=3.0), queue("b"), places=1)
    ) == Start("b", (RAM,))


# ---- _Plan.make_place, case by case


@table(
    (
        "1-below-the-limit-of-models",
        scheduler_state(queue("c"), idle(1, "a"), idle(2, "b")),
        Start("c", (RAM,)),
    ),
    (
        "1-replicas-count-as-one-model",
        scheduler_state(queue("c"), idle(1, "a"), idle(2, "a"), places=2),
        Start("c", (RAM,)),
    ),
    (
        "1-while-its-last-one-stops",
        scheduler_state(queue("a"), stopping(1, "a"), places=1),
        Start("a", (RAM,)),
    ),
    (
        "2-a-further-replica",
        scheduler_state(queue("a"), busy(1, "a"), model("a", replicas=2)),
        Start("a", (RAM,)),
    ),
    (
        "2-does-not-count-as-a-model",
        scheduler_state(queue("a"), busy(1, "a"), model("a", replicas=2), places=1),
        Start("a", (RAM,)),
    ),
    (
        "2-not-for-an-operator",
        scheduler_state(loads("a"), busy(1, "a"), model("a", replicas=2)),
        Wait(None, {"a": "all its slots are busy"}),
    ),
    (
        "2-evicts-no-other",
        scheduler_state(queue("a", 99), busy(1, "a"), idle(2, "b"), model("a", replicas=2), free=0, total=2),
        Wait(None, {"a": "all its slots are busy"}),
    ),
    (
        "2-no-third",
        scheduler_state(queue("a"), busy(1, "a"), busy(2, "a"), model("a", replicas=2)),
        Wait(None, {"a": "all its slots are busy"}),
    ),
    (
        "2-not-before-others",
        scheduler_state(
            queue("a", 99),
            busy(1, "a", demand=0.1),
            model("a", replicas=2),
            queue("b"),
            busy(2, "c"),
            places=2,
            free=1,
        ),
        Wait(DUE_S, {"a": "all its slots are busy, and other models wait for memory", "b": "c is in use"}),
    ),
    (
        "2-preloading-evicts-no-other",
        scheduler_state(loads("a", may_evict=False), idle(1, "b"), places=1),
        Wait(None, {"a": DOES_NOT_FIT}),
    ),
    (
        "2-preloading-where-it-fits",
        scheduler_state(loads("a", may_evict=False), idle(1, "b"), places=2),
        Start("a", (RAM,)),
    ),
    (
        "2-preloading-keeps-no-replica-away",
        scheduler_state(
            loads("b", 99, may_evict=False), queue("a"), busy(1, "a"), model("a", replicas=2), places=1
        ),
        Start("a", (RAM,)),
    ),
    (
        "3-larger-than-the-machine",
        scheduler_state(queue("a"), model("a", 9), idle(1, "b"), free=7, total=8),
        Refuse("a", "memory", 9 * GIB, 8 * GIB),
    ),
    (
        "3-pinned-ones-reach-the-limit",
        scheduler_state(queue("a"), idle(1, "b", is_pinned=True), places=1),
        Refuse("a", "pinned"),
    ),
    (
        "3-one-that-stops-may-free-more-than-known",
        scheduler_state(queue("a"), ResidentRunner(1, "b", "stopping"), free=0),
        Wait(None, {"a": "memory is being freed for it"}),
    ),
    (
        "4-reserved-for-others",
        scheduler_state(queue("a", 99), stopping(1, "b"), queue("c", 98), places=1),
        Wait(None, {"a": "memory is being freed for it", "c": "a is loaded first"}),
    ),
    (
        "5-busy-ones-continue",
        scheduler_state(queue("a", 3), busy(1, "b"), places=1),
        Wait(DUE_S - 3, {"a": "b is in use"}),
    ),
    (
        "5-idle-ones-linger",
        scheduler_state(queue("a"), idle(1, "b", LINGERS_S / 4, demand=OFTEN), places=1),
        Wait(LINGERS_S * 3 / 4, {"a": "b is likely to be requested again soon"}),
    ),
    (
        "5-since-its-own-turn-ended",
        scheduler_state(queue("a", 99, since_eviction_s=3.0), busy(1, "b"), places=1),
        Wait(DUE_S - 3, {"a": "b is in use"}),
    ),
    (
        "6-memory-is-being-freed",
        scheduler_state(queue("a", 99), stopping(1, "b"), busy(2, "c"), places=2),
        Wait(None, {"a": "memory is being freed for it"}),
    ),
    (
        "7-a-load-comes-first",
        scheduler_state(queue("a", 99), idle(1, "b"), loading(2, "c"), places=2),
        Wait(None, {"a": OTHER_LOADS_FIRST}),
    ),
    (
        "7-busy-ones-continue-meanwhile",
        scheduler_state(queue("a", 99), busy(1, "b"), loading(2, "c"), places=2),
        Wait(None, {"a": OTHER_LOADS_FIRST}),
    ),
    (
        "7-a-load-that-will-be-next",
        scheduler_state(queue("a", 99), queue("d", 98), idle(1, "b"), stopping(2, "c"), places=2),
        Wait(None, {"a": "memory is being freed for it", "d": OTHER_LOADS_FIRST}),
    ),
    (
        "7-not-a-load-elsewhere",
        scheduler_state(queue("a"), idle(1, "b"), loading(2, "c", on=0), places=2, free={RAM: 9, 0: 9}),
        Stop(1, "evicted", "a"),
    ),
    ("8-due", scheduler_state(queue("a", DUE_S), busy(1, "b"), places=1), Drain(1, "a")),
    (
        "8-draining-ends-its-requests",
        scheduler_state(queue("a", DUE_S), busy(1, "b", is_draining=True), places=1),
        Wait(None, {"a": "b finishes its running requests"}),
    ),
    (
        "8-due-but-just-loaded",
        scheduler_state(queue("a", 99), busy(1, "b", ready_s=0.5), places=1),
        Wait(1.5, {"a": "b was just loaded"}),
    ),
    (
        "8-due-but-still-loading-elsewhere",
        scheduler_state(queue("a", 99), loading(1, "b", on=0), places=1, free={RAM: 9, 0: 9}),
        Wait(None, {"a": "b is being loaded"}),
    ),
    (
        "8-a-queue-of-its-own-is-work",
        scheduler_state(
            queue("a", DUE_S), ResidentRunner(1, "b", "ready", slots=0, ready_s=99), queue("b"), places=1
        ),
        Drain(1, "a"),
    ),
    (
        "9-an-idle-one-is-unloaded",
        scheduler_state(queue("a"), idle(1, "b"), places=1),
        Stop(1, "evicted", "a"),
    ),
    (
        "9-lingering-no-longer",
        scheduler_state(queue("a"), idle(1, "b", LINGERS_S, demand=OFTEN), places=1),
        Stop(1, "evicted", "a"),
    ),
    (
        "9-lingering-but-due",
        scheduler_state(queue("a", DUE_S), idle(1, "b", LINGERS_S / 4, demand=OFTEN), places=1),
        Stop(1, "evicted", "a"),
    ),
    (
        "9-requested-too-seldom-to-linger",
        scheduler_state(queue("a"), idle(1, "b", 0.0, demand=OFTEN * 0.9), places=1),
        Stop(1, "evicted", "a"),
    ),
    (
        "9-draining-and-idle",
        scheduler_state(
            queue("a", DUE_S), idle(1, "b", is_draining=True), queue("b", 99, since_eviction_s=1.0), places=1
        ),
        Stop(1, "evicted", "a"),
    ),
)
def test_how_place_is_made(state: SchedulerState, step: Any) -> None:
    assert next_step(state) == step


def test_loads_on_one_device_follow_each_other() -> None:
    assert waits(scheduler_state(queue("a"), loading(1, "b")), "a") == OTHER_LOADS_FIRST


def test_next_load_keeps_its_reservation() -> None:
    state = scheduler_state(
        queue("a", 5),
        loading(1, "b"),
        queue("c", 1),
        model("c", on_gpu=True),
        places=2,
        free={RAM: 9, 0: 9},
        total={RAM: 9, 0: 9},
    )
    assert waits(state, "a") == OTHER_LOADS_FIRST
    assert waits(state, "c") == "b is in use"


def test_loads_on_other_devices_do_not_wait() -> None:
    assert next_step(
        scheduler_state(queue("a"), model("a", on_gpu=True), loading(1, "b"), free={RAM: 9, 0: 9})
    ) == Start("a", (0,))


# ---- how long


@pytest.mark.parametrize(
    ("priority", "cost_s", "due"),
    [
        pytest.param(1, 1.0, DUE_COSTS, id="normal"),
        pytest.param(0, 1.0, DUE_COSTS / 2, id="high"),
        pytest.param(2, 1.0, DUE_COSTS * 2, id="low"),
        pytest.param(1, 1000.0, 30.0, id="at-most-extra-wait"),
        pytest.param(2, 1000.0, 30.0, id="even-of-low-priority"),
        pytest.param(1, 0.0, 0.0, id="swaps-that-cost-nothing"),
    ],
)
def test_due_after(priority: int, cost_s: float, due: float) -> None:
    assert due_after_s(QueueState("a", priority=priority), cost_s, SchedulerRules(extra_wait_s=30.0)) == due


@pytest.mark.parametrize(
    ("load_s", "stay"),
    [pytest.param(1.0, STAY_LOADS, id="by-its-load"), pytest.param(1000.0, 30.0, id="at-most-extra-wait")],
)
def test_min_stay_of_a_loaded_model(load_s: float, stay: float) -> None:
    assert min_stay_s(idle(1, "a", load_s=load_s), SchedulerRules(extra_wait_s=30.0)) == stay


@pytest.mark.parametrize(
    ("one", "lingers"),
    [
        pytest.param(idle(1, "a", 0.0, demand=OFTEN), LINGERS_S, id="asked-often"),
        pytest.param(
            idle(1, "a", LINGERS_S / 4, demand=OFTEN), LINGERS_S * 3 / 4, id="less-what-it-was-idle"
        ),
        pytest.param(idle(1, "a", LINGERS_S * 2, demand=OFTEN), 0.0, id="no-longer"),
        pytest.param(idle(1, "a", 0.0, demand=OFTEN * 0.9), 0.0, id="asked-less-often"),
        pytest.param(idle(1, "a", 0.0, demand=OFTEN * 9, is_draining=True), 0.0, id="closed"),
    ],
)
def test_linger_of_an_idle_model(one: ResidentRunner, lingers: float) -> None:
    assert linger_s(one, SWAP_S, SchedulerRules()) == pytest.approx(lingers)


def test_linger_is_limited_by_the_extra_wait() -> None:
    assert linger_s(idle(1, "a", 0.0, demand=100.0), 1000.0, SchedulerRules(extra_wait_s=5.0)) == 5.0


def test_without_extra_wait_busy_models_are_drained_at_once() -> None:
    assert next_step(
        scheduler_state(queue("a"), busy(1, "b", ready_s=0.0), places=1, extra_wait_s=0.0)
    ) == Drain(1, "a")


def test_model_with_a_long_load_is_drained_later() -> None:
    assert (
        next_step(scheduler_state(queue("a", DUE_S), busy(1, "b", load_s=3.0), places=1)).again_s
        == DUE_COSTS * 4 - DUE_S
    )


# ---- the most urgent queue


@table(
    ("the-older", scheduler_state(queue("a", 1), queue("b", 2)), Start("b", (RAM,))),
    ("of-equals-the-longer", scheduler_state(queue("a"), queue("b", requests=5)), Start("b", (RAM,))),
    ("priority", scheduler_state(queue("a", 9), queue("b", 0, priority=0)), Start("b", (RAM,))),
    (
        "ageing-weighs-more-in-the-end",
        scheduler_state(queue("a", 11), queue("b", 0, priority=0)),
        Start("a", (RAM,)),
    ),
    (
        "ageing-as-the-operator-says",
        scheduler_state(queue("a", 11), queue("b", 0, priority=0), ageing_s=60.0),
        Start("b", (RAM,)),
    ),
    (
        "of-due-queues-by-priority",
        scheduler_state(queue("a", 20), queue("b", 15, priority=0), busy(1, "c"), places=1),
        Drain(1, "b"),
    ),
    (
        "of-due-queues-by-age",
        scheduler_state(queue("a", 20), queue("b", 15), busy(1, "c"), places=1),
        Drain(1, "a"),
    ),
    (
        "one-that-had-its-turn-after-those-that-had-none",
        scheduler_state(queue("a", 99, since_eviction_s=5.0), queue("b", 9), places=1),
        Start("b", (RAM,)),
    ),
    (
        "one-with-a-reservation",
        scheduler_state(queue("a", 99, priority=0), queue("b", 9, has_reservation=True), places=1),
        Start("b", (RAM,)),
    ),
    (
        "replicas-last",
        scheduler_state(
            queue("a", 99, priority=0), busy(1, "a"), model("a", replicas=2), queue("b", priority=2)
        ),
        Start("b", (RAM,)),
    ),
    (
        "a-due-queue-does-not-wait-for-others",
        scheduler_state(
            queue("a", 9, priority=0), model("a", load_s=9), queue("b", 8), busy(1, "c"), places=1
        ),
        Drain(1, "b"),
    ),
)
def test_most_urgent_queue(state: SchedulerState, step: Any) -> None:
    assert next_step(state) == step


def test_evicted_model_does_not_take_the_place_back() -> None:
    """`b` was unloaded for `a`; its own line is older and more urgent."""
    state = scheduler_state(
        queue("a", 9, has_reservation=True),
        queue("b", 50, priority=0, since_eviction_s=3.0),
        stopping(1, "b"),
        places=1,
    )
    assert waits(state, "b") == "a is loaded first"


# ---- what is evicted


@table(
    (
        "least-loss",
        scheduler_state(
            queue("d"), idle(1, "a", demand=0.3), idle(2, "b", demand=0.1), idle(3, "c", demand=0.2)
        ),
        Stop(2, "evicted", "d"),
    ),
    (
        "loading-time-counts",
        scheduler_state(queue("d"), idle(1, "a", demand=0.1, load_s=9), idle(2, "b", demand=0.2), places=2),
        Stop(2, "evicted", "d"),
    ),
    (
        "of-equals-the-longest-idle",
        scheduler_state(queue("d"), idle(1, "a", 5), idle(2, "b", 9), idle(3, "c", 7)),
        Stop(2, "evicted", "d"),
    ),
    (
        "idle-before-busy",
        scheduler_state(queue("d", 99), busy(1, "a"), idle(2, "b", demand=0.4), places=2),
        Stop(2, "evicted", "d"),
    ),
    (
        "not-pinned",
        scheduler_state(queue("d"), idle(1, "a", 99, is_pinned=True), idle(2, "b", 1), places=2),
        Stop(2, "evicted", "d"),
    ),
    (
        "not-what-is-loading",
        scheduler_state(queue("d", 99), loading(1, "a", on=0), busy(2, "b"), places=2, free={RAM: 9, 0: 9}),
        Drain(2, "d"),
    ),
    (
        "not-what-was-just-loaded",
        scheduler_state(queue("d", 99), busy(1, "a", ready_s=1.0), busy(2, "b", demand=9.0), places=2),
        Drain(2, "d"),
    ),
    (
        "one-that-does-not-linger",
        scheduler_state(
            queue("d"),
            idle(1, "a", 0.0, demand=OFTEN),
            idle(2, "b", 0.0, demand=OFTEN / 2, load_s=2.1),
            places=2,
        ),
        Stop(2, "evicted", "d"),
    ),
    (
        "a-draining-one-before-another",
        scheduler_state(queue("d", 99), busy(1, "a"), busy(2, "b", is_draining=True, demand=9.0), places=2),
        Wait(None, {"d": "b finishes its running requests"}),
    ),
    (
        "an-idle-one-before-a-draining-one-which-resumes",
        scheduler_state(queue("d", 99), idle(1, "a"), busy(2, "b", is_draining=True), places=2),
        Resume(2),
    ),
    (
        "and-is-unloaded",
        scheduler_state(queue("d", 99), idle(1, "a"), busy(2, "b"), places=2),
        Stop(1, "evicted", "d"),
    ),
    (
        "one-of-two-replicas",
        scheduler_state(
            queue("d"),
            model("d", 2),
            idle(1, "a", demand=0.3),
            idle(2, "a", demand=0.3),
            idle(3, "b", demand=0.2),
            free=1,
            total=4,
        ),
        Stop(1, "evicted", "d"),
    ),
)
def test_which_model_is_evicted(state: SchedulerState, step: Any) -> None:
    assert next_step(state) == step


def test_eviction_loss_is_the_cost_of_another_load() -> None:
    assert eviction_loss(idle(1, "a", demand=0.5, load_s=8.0)) == 4.0


@table(
    (
        "none-in-vain",
        scheduler_state(
            queue("d"),
            model("d", 4),
            idle(1, "a", demand=0.1),
            idle(2, "b", gib=4, demand=0.2),
            idle(3, "c", demand=0.3),
            free=0,
            total=6,
        ),
        Stop(2, "evicted", "d"),
    ),
    (
        "none-of-many-in-vain",
        scheduler_state(
            queue("d"),
            model("d", 4),
            idle(1, "a", demand=0.1),
            idle(2, "b", gib=2, demand=0.2),
            idle(3, "c", gib=2, demand=0.3),
            places=9,
            free=0,
            total=5,
        ),
        Stop(2, "evicted", "d"),
    ),
    (
        "one-rather-than-many-that-are-as-cheap",
        scheduler_state(
            queue("d"),
            model("d", 2),
            idle(1, "a", 9),
            idle(2, "b", 8),
            idle(3, "c", 5, gib=2),
            free=0,
            total=4,
        ),
        Stop(3, "evicted", "d"),
    ),
    (
        "one-rather-than-many",
        scheduler_state(
            queue("d"),
            model("d", 2),
            idle(1, "a", demand=0.2),
            idle(2, "b", demand=0.2),
            idle(3, "c", gib=2, demand=0.3),
            free=0,
            total=4,
        ),
        Stop(3, "evicted", "d"),
    ),
    (
        "many-rather-than-a-costly-one",
        scheduler_state(
            queue("d"),
            model("d", 2),
            idle(1, "a", demand=0.1),
            idle(2, "b", demand=0.1),
            idle(3, "c", gib=2, demand=0.3),
            free=0,
            total=4,
        ),
        Stop(1, "evicted", "d"),
    ),
    (
        "the-next-of-many",
        scheduler_state(queue("d"), model("d", 2), stopping(1, "a"), idle(2, "b"), places=9, free=0, total=2),
        Stop(2, "evicted", "d"),
    ),
    (
        "memory-that-is-being-freed-counts",
        scheduler_state(queue("d"), model("d", 2), stopping(1, "a", gib=2), idle(2, "b"), free=0, total=3),
        Wait(None, {"d": "memory is being freed for it"}),
    ),
    (
        "two-that-stop-are-for-two",
        scheduler_state(
            queue("d", 2), queue("e", 1), stopping(1, "a"), stopping(2, "b"), idle(3, "c"), free=0, total=3
        ),
        Wait(None, {"d": "memory is being freed for it", "e": "memory is being freed for it"}),
    ),
    (
        "not-while-its-memory-would-be-unused",
        scheduler_state(
            queue("d", 99), model("d", 2), idle(1, "a"), busy(2, "b", is_draining=True), free=0, total=2
        ),
        Wait(None, {"d": "b finishes its running requests"}),
    ),
    (
        "not-drained-while-another-stays",
        scheduler_state(
            queue("d", 99), model("d", 2), busy(1, "a"), busy(2, "b", ready_s=1.0), free=0, total=2
        ),
        Wait(1.0, {"d": "a, b was just loaded"}),
    ),
    (
        "all-together",
        scheduler_state(
            queue("d", 99), model("d", 2), busy(1, "a", is_draining=True), busy(2, "b"), free=0, total=2
        ),
        Drain(2, "d"),
    ),
    (
        "none-for-a-model-that-cannot-fit",
        scheduler_state(
            queue("d", 99), model("d", 3), idle(1, "a"), idle(2, "b", is_pinned=True), free=0, total=3
        ),
        Refuse("d", "memory", 3 * GIB, 1 * GIB),
    ),
)
def test_no_more_is_evicted_than_needed(state: SchedulerState, step: Any) -> None:
    assert next_step(state) == step


# ---- no queue starves


@table(
    (
        "small-ones-wait-while-memory-is-freed-for-a-big-one",
        scheduler_state(
            queue("big", 40),
            model("big", 4),
            busy(1, "a", is_draining=True),
            busy(2, "b", is_draining=True),
            queue("c", 1),
            places=9,
            free=2,
            total=4,
        ),
        Wait(None, {"big": "a, b finishes its running requests", "c": "big is loaded first"}),
    ),
    (
        "small-ones-start-beside-it",
        scheduler_state(
            queue("big", 40),
            model("big", 4),
            busy(1, "a", gib=2, is_draining=True),
            queue("c", 1),
            places=9,
            free=3.5,
            total=5.5,
        ),
        Start("c", (RAM,)),
    ),
    (
        "small-ones-start-while-it-is-not-due",
        scheduler_state(
            queue("big", 1), model("big", 4), busy(1, "a", gib=2), queue("c", 0), places=9, free=2, total=4
        ),
        Start("c", (RAM,)),
    ),
    (
        "others-start-on-another-device",
        scheduler_state(
            queue("big", 40),
            model("big", 4, on_gpu=True),
            busy(1, "a", on=0, gib=4, is_draining=True),
            queue("c", 1),
            places=2,
            free={RAM: 8, 0: 0},
            total={RAM: 8, 0: 4},
        ),
        Start("c", (RAM,)),
    ),
    (
        "a-second-due-queue-drains-another",
        scheduler_state(
            queue("c", 99), queue("d", 98), busy(1, "a", is_draining=True), busy(2, "b"), places=2
        ),
        Drain(2, "d"),
    ),
    (
        "one-drained-for-a-second-queue-stays-so-while-a-first-one-starts",
        scheduler_state(
            queue("c", 99),
            model("c", on_gpu=True),
            queue("d", 98),
            model("d", 2),
            busy(1, "a", gib=2, is_draining=True),
            places=9,
            free={RAM: 0, 0: 4},
            total={RAM: 2, 0: 4},
        ),
        Start("c", (0,)),
    ),
    (
        "preloading-takes-no-memory-that-is-being-freed",
        scheduler_state(queue("c", 99), stopping(1, "a"), loads("d", may_evict=False), places=1),
        Wait(None, {"c": "memory is being freed for it", "d": DOES_NOT_FIT}),
    ),
)
def test_no_queue_starves(state: SchedulerState, step: Any) -> None:
    assert next_step(state) == step


def test_most_urgent_queue_sets_the_next_time() -> None:
    state = scheduler_state(queue("a", 3), queue("b", 1), busy(1, "c"), busy(2, "d"), places=2)
    assert next_step(state) == Wait(DUE_S - 3, {"a": "c is in use", "b": "c is in use"})


# ---- memory


def gpus(
    *free: float,
    need: float,
    total: float = 8,
    margin: float = 0,
    extra: tuple[ResidentRunner, ...] = (),
    removed: tuple[int, ...] = (),
) -> Any:
    """Give where a model of `need` GiB fits on GPUs with so much free, each of `total`.

    Beside a machine full of RAM.
    """
    state = scheduler_state(
        *extra,
        free=dict(enumerate(free)) | {RAM: 100},
        total=dict.fromkeys(range(len(free)), total) | {RAM: 100},
        margin=margin,
    )
    return find_devices(model("a", need, on_gpu=True), state, removed=removed)


@pytest.mark.parametrize(
    ("devices", "expected"),
    [
        pytest.param(gpus(8, need=8), (0,), id="to-the-last-byte"),
        pytest.param(gpus(8, need=8, margin=0.1), None, id="but-for-the-margin"),
        pytest.param(gpus(4, 6, 5, need=3), (1,), id="most-free-memory-first"),
        pytest.param(gpus(4, 4, need=3), (0,), id="of-equals-the-first"),
        pytest.param(gpus(3, 5, need=4), (1,), id="where-it-fits"),
        pytest.param(
            gpus(4, 6, need=3, extra=(loading(1, "b", on=1),)),
            (0,),
            id="rather-where-nothing-is-being-loaded",
        ),
        pytest.param(
            gpus(2, 6, need=3, extra=(loading(1, "b", on=1),)), (1,), id="unless-it-fits-nowhere-else"
        ),
        pytest.param(gpus(5, 5, need=6), None, id="not-split-if-one-could-hold-it"),
        pytest.param(gpus(8, 8, need=12), (0, 1), id="split-if-none-could"),
        pytest.param(gpus(8, 0, 8, need=12), (0, 2), id="split-over-those-with-free-memory"),
        pytest.param(gpus(8, 3, need=12), None, id="not-enough-together"),
        pytest.param(gpus(8, 8, need=15.9, margin=0.1), None, id="each-keeps-its-margin"),
        pytest.param(gpus(8, 8, need=15.7, margin=0.1), (0, 1), id="and-holds-the-rest"),
        pytest.param(gpus(8, need=9), None, id="nothing-to-split-over"),
        pytest.param(gpus(need=1), None, id="no-gpu"),
        pytest.param(
            gpus(1, need=4, extra=(idle(1, "b", on=0, gib=3),), removed=(1,)),
            (0,),
            id="with-memory-that-another-frees",
        ),
        pytest.param(
            gpus(6, need=9, extra=(idle(1, "b", on=0, gib=6),), removed=(1,)),
            None,
            id="never-more-than-there-is",
        ),
    ],
)
def test_where_a_model_fits_on_gpus(devices: Any, expected: Any) -> None:
    assert devices == expected


def test_model_without_gpu_layers_uses_system_memory() -> None:
    assert find_devices(model("a"), scheduler_state(free={RAM: 2, 0: 9}, total={RAM: 2, 0: 9})) == (RAM,)


@table(
    (
        "with-the-margin",
        scheduler_state(queue("a"), model("a", 8, on_gpu=True), free={0: 8}, total={0: 8}, margin=0.5),
        Refuse("a", "memory", 17 << 29, 8 * GIB),
    ),
    (
        "the-best-of-several-gpus",
        scheduler_state(queue("a"), model("a", 7, on_gpu=True), free={0: 2, 1: 5}, total={0: 8, 1: 8}),
        Refuse("a", "memory", 7 * GIB, 5 * GIB),
    ),
    (
        "all-gpus-together",
        scheduler_state(queue("a"), model("a", 20, on_gpu=True), free={0: 2, 1: 5}, total={0: 8, 1: 8}),
        Refuse("a", "memory", 20 * GIB, 7 * GIB),
    ),
    (
        "with-memory-that-can-be-freed",
        scheduler_state(
            queue("a"), model("a", 7, on_gpu=True), idle(1, "b", on=0, gib=4), free={0: 2}, total={0: 8}
        ),
        Refuse("a", "memory", 7 * GIB, 6 * GIB),
    ),
    (
        "without-what-is-pinned",
        scheduler_state(
            queue("a"),
            model("a", 7, on_gpu=True),
            idle(1, "b", on=0, gib=6, is_pinned=True),
            free={0: 2},
            total={0: 8},
        ),
        Refuse("a", "memory", 7 * GIB, 2 * GIB),
    ),
    (
        "no-memory-is-known",
        scheduler_state(queue("a"), model("a", on_gpu=True), free={}, total={}),
        Refuse("a", "memory", GIB, 0),
    ),
    (
        "even-while-others-run",
        scheduler_state(queue("a"), model("a", 9), busy(1, "b"), free=7, total=8),
        Refuse("a", "memory", 9 * GIB, 8 * GIB),
    ),
    (
        "not-for-what-is-only-loading",
        scheduler_state(queue("a"), model("a", 8), loading(1, "b", gib=6), free=2, total=8),
        Wait(DUE_S, {"a": "b is in use"}),
    ),
)
def test_refusal_for_memory_has_its_figures(state: SchedulerState, step: Any) -> None:
    assert next_step(state) == step


# ---- models that are never loaded together


def apart(*pairs: str) -> dict[str, frozenset[str]]:
    """Give the conflicts of pairs such as `ab`."""
    return {
        alias: frozenset("".join(pair for pair in pairs if alias in pair).replace(alias, ""))
        for alias in dict.fromkeys("".join(pairs))
    }


def grouped(conflicts: dict[str, frozenset[str]], *parts: Any, **how: Any) -> SchedulerState:
    return replace(scheduler_state(*parts, **how), conflicts=conflicts)


@table(
    (
        "an-idle-one-is-unloaded-however-much-is-free",
        grouped(apart("ab"), queue("a"), idle(1, "b"), idle(2, "c")),
        Stop(1, "evicted", "a"),
    ),
    ("others-stay", grouped(apart("ab"), queue("a"), idle(2, "c"), idle(3, "d")), Start("a", (RAM,))),
    (
        "all-of-a-set-that-swaps-as-one",
        grouped(apart("ab", "ac"), queue("a"), stopping(1, "b"), idle(2, "c")),
        Stop(2, "evicted", "a"),
    ),
    (
        "those-of-one-set-are-loaded-together",
        grouped(apart("ab", "ac"), queue("c"), idle(1, "b")),
        Start("c", (RAM,)),
    ),
    (
        "not-before-it-has-stopped",
        grouped(apart("ab"), queue("a"), stopping(1, "b")),
        Wait(None, {"a": "memory is being freed for it"}),
    ),
    (
        "a-busy-one-has-its-time",
        grouped(apart("ab"), queue("a", 1), busy(1, "b")),
        Wait(DUE_S - 1, {"a": "b is in use"}),
    ),
    ("a-busy-one-is-drained-when-due", grouped(apart("ab"), queue("a", 99), busy(1, "b")), Drain(1, "a")),
    (
        "one-that-is-being-loaded-is-waited-for",
        grouped(apart("ab"), queue("a", 99), loading(1, "b")),
        Wait(None, {"a": OTHER_LOADS_FIRST}),
    ),
    (
        "the-first-of-two-that-wait-is-loaded",
        grouped(apart("ab"), queue("a", 2), queue("b", 1)),
        Start("a", (RAM,)),
    ),
    (
        "a-queue-that-comes-first-keeps-the-other-out",
        grouped(
            apart("ab", "bc"),
            queue("b", 99, has_reservation=True),
            queue("a", 1),
            busy(1, "c", is_draining=True),
        ),
        Wait(None, {"a": "b is loaded first", "b": "c finishes its running requests"}),
    ),
    (
        "memory-and-group-together",
        grouped(
            apart("ab"),
            queue("a"),
            model("a", 6),
            stopping(1, "b", gib=4),
            idle(2, "c", gib=4),
            free=1,
            total=9,
        ),
        Stop(2, "evicted", "a"),
    ),
    (
        "no-more-than-the-group-needs",
        grouped(
            apart("ab"), queue("a"), model("a", 6), idle(1, "b", gib=4), idle(2, "c", gib=4), free=4, total=12
        ),
        Stop(1, "evicted", "a"),
    ),
    (
        "a-pinned-one-cannot-be-unloaded",
        grouped(apart("ab"), queue("a"), idle(1, "b", is_pinned=True)),
        Refuse("a", "group"),
    ),
    (
        "preloading-unloads-none",
        grouped(apart("ab"), loads("a", may_evict=False), idle(1, "b")),
        Wait(None, {"a": DOES_NOT_FIT}),
    ),
)
def test_models_of_groups(state: SchedulerState, step: Any) -> None:
    assert next_step(state) == step


# ---- demand


def test_demand_is_requests_a_second() -> None:
    demand = Demand()
    for second in range(2000):
        demand.add(second / 2)
    assert demand.rate(1000.0) == pytest.approx(2.0, rel=0.02)


def test_demand_fades() -> None:
    demand = Demand()
    demand.add(0.0)
    assert demand.rate(demand_module.DEMAND_S) == pytest.approx(demand.rate(0.0) / 2.718, rel=0.001)
    assert Demand().rate(5.0) == 0.0
