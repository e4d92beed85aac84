"""How one of several servers is chosen: the strategies' promises, without servers."""

from collections import Counter

import pytest

from appliance.base.balancing import (
    STRATEGIES,
    Balancer,
    Member,
    align_total,
    compute_vram_weight,
    hash_blocks,
)
from appliance.base.fair_queue import FairQueue, FairQueueFull
from appliance.base.retry_budget import RetryBudget


def members(**how: list[float]) -> list[Member]:
    """Make one member for each value of the lists."""
    made = [Member(f"m{number}") for number in range(len(next(iter(how.values()))))]
    for name, values in how.items():
        for member, value in zip(made, values, strict=True):
            setattr(member, name, value)
    return made


def shares(strategy: str, rows: list[Member], count: int, *, keeps: bool = False) -> Counter[str]:
    """Choose `count` times; requests end at once unless `keeps`."""
    balancer, found = Balancer(strategy, seed=1), Counter[str]()
    for _ in range(count):
        member, _ = balancer.choose(rows)
        member.record_start(1.0)
        if not keeps:
            member.record_end(None)
        found[member.name] += 1
    return found


@pytest.mark.parametrize(
    "strategy",
    [
        "least_busy",
        "least_connections",
        "round_robin",
        "weighted_round_robin",
        "equal_weighted",
        "prefix_affinity",
    ],
)
def test_a_burst_spreads_evenly(strategy: str) -> None:
    assert set(shares(strategy, members(weight=[1, 1, 1, 1]), 64, keeps=True).values()) == {16}


def test_power_of_two_spreads_a_burst_nearly_evenly() -> None:
    found = shares("power_of_two", members(weight=[1, 1, 1, 1]), 64, keeps=True)
    assert len(found) == 4
    assert max(found.values()) - min(found.values()) <= 4


@pytest.mark.parametrize(
    ("strategy", "state", "wanted"),
    [
        ("least_busy", {"active": [2, 1, 2]}, "m1"),
        ("least_busy", {"active": [0, 0], "external": [3.0, 1.0]}, "m1"),
        ("least_busy", {"active": [3, 2], "weight": [2.0, 1.0]}, "m0"),
        ("least_busy", {"active": [1, 1], "ramp": [0.1, 1.0]}, "m1"),
        ("least_busy", {"active": [1, 1], "cost": [2.0, 1.0]}, "m1"),
        ("equal_weighted", {"total": [5, 3, 4], "active": [0, 9, 0]}, "m1"),
        ("least_connections", {"active": [1, 0], "external": [0.0, 9.0]}, "m1"),
        ("least_response_time", {"mean_s": [0.2, 0.1, 0.3]}, "m1"),
        ("least_response_time", {"mean_s": [0.2, 0.1, None]}, "m2"),
    ],
)
def test_the_one_that_is_chosen(strategy: str, state: dict[str, list[float]], wanted: str) -> None:
    assert Balancer(strategy).choose(members(**state))[0].name == wanted


def test_shares_follow_weights_and_interleave() -> None:
    rows = members(weight=[3.0, 2.0, 1.0])
    assert shares("weighted_round_robin", rows, 600) == {"m0": 300, "m1": 200, "m2": 100}
    balancer = Balancer("weighted_round_robin")
    fresh = members(weight=[2.0, 1.0, 1.0])
    assert [balancer.choose(fresh)[0].name for _ in range(4)] == ["m0", "m1", "m2", "m0"]


def test_a_switch_keeps_the_counters() -> None:
    rows = members(weight=[1, 1])
    shares("round_robin", rows, 10)
    balancer = Balancer("round_robin")
    balancer.strategy = "equal_weighted"
    assert [row.total for row in rows] == [5, 5]
    with pytest.raises(ValueError, match="least_busy"):
        balancer.strategy = "best"


def test_times_are_averaged_as_system_b_does() -> None:
    member = Member("m")
    for took_s in (0.4, 0.2, None, 0.1):
        member.record_start(1.0)
        member.record_end(took_s)
    assert (member.mean_s, member.last_s, member.active, member.total) == (pytest.approx(0.2), 0.1, 0, 4)


def test_affinity_finds_the_cache_and_yields_to_load() -> None:
    rows, balancer = members(weight=[1, 1, 1]), Balancer("prefix_affinity")
    prefixes = hash_blocks(b"a long system prompt " * 100)
    balancer.remember(rows[2], prefixes)
    assert balancer.choose(rows, prefixes=prefixes) == (rows[2], "affinity")
    assert balancer.choose(rows, prefixes=prefixes[:4] + hash_blocks(b"x" * 1000)) == (rows[2], "affinity")
    rows[2].active = 1
    assert balancer.choose(rows, prefixes=prefixes)[0] is rows[2]
    rows[2].active = 3
    assert balancer.choose(rows, prefixes=prefixes)[0] is not rows[2]
    rows[2].active = 0
    balancer.forget(rows[2])
    assert balancer.choose(rows, prefixes=prefixes)[1] == "prefix_affinity"


def test_equal_beginnings_have_equal_hashes() -> None:
    one, two = hash_blocks(b"x" * 600 + b"one" * 200), hash_blocks(b"x" * 600 + b"two" * 200)
    assert one[:2] == two[:2]
    assert one[2] != two[2]
    assert hash_blocks(b"short") == []
    assert len(hash_blocks(b"y" * 10**6)) == 64


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_one_alone_is_chosen_as_such(strategy: str) -> None:
    (row,) = members(weight=[1])
    assert Balancer(strategy).choose([row], prefixes=[1]) == (row, "only_one")


def test_a_newcomer_is_not_flooded() -> None:
    rows, newcomer = members(total=[1000, 1002]), Member("new")
    align_total(newcomer, rows)
    assert newcomer.total == 1000


@pytest.mark.parametrize(
    ("gib", "price", "weight"),
    [(80, None, 3.0), (48, 2.0, 2.0), (24, 0.5, 1.8), (16, 0.99, 1.2), (16, 1.0, 1.0)],
)
def test_weights_by_memory_and_price(gib: float, price: float | None, weight: float) -> None:
    assert compute_vram_weight(gib, price) == pytest.approx(weight)


def queue_of(*rows: tuple[str, int, float]) -> FairQueue[str]:
    queue: FairQueue[str] = FairQueue(100, ageing_s=10)
    for number, (flow, priority, since_s) in enumerate(rows):
        queue.push(f"{flow}{number}", flow=flow, priority=priority, now_s=since_s)
    return queue


def order(queue: FairQueue[str], now_s: float) -> list[str]:
    return [queue.pop(now_s) for _ in range(len(queue))]


@pytest.mark.parametrize(
    ("rows", "wanted"),
    [
        ([("a", 1, 0), ("a", 1, 0), ("a", 1, 0), ("b", 1, 0)], ["a0", "b3", "a1", "a2"]),
        ([("a", 2, 0), ("b", 1, 0), ("c", 0, 0)], ["c2", "b1", "a0"]),
        ([("a", 0, 19.0), ("b", 2, -10.0)], ["b1", "a0"]),
        ([("a", 1, 15.0), ("b", 2, 4.0)], ["b1", "a0"]),
    ],
)
def test_whose_turn_it_is(rows: list[tuple[str, int, float]], wanted: list[str]) -> None:
    assert order(queue_of(*rows), 20.0) == wanted


def test_a_low_one_is_served_under_a_flood_of_high_ones() -> None:
    queue: FairQueue[str] = FairQueue(1000, ageing_s=10)
    queue.push("low", flow="l", priority=2, now_s=0)
    served: list[str] = []
    for second in range(100):
        for _ in range(2):
            queue.push(f"{second}", flow="h", priority=0, now_s=second)
        served.append(queue.pop(second))
    before = served[: served.index("low")]
    assert (
        max(map(int, before)) <= 20
    )  # two levels of ten seconds: nobody who came later than that went before it


def test_leaving_the_line() -> None:
    queue: FairQueue[str] = FairQueue(2)
    first, second = (queue.push(name, flow="f", now_s=0) for name in "ab")
    with pytest.raises(FairQueueFull):
        queue.push("c", flow="g", now_s=0)
    assert queue.position(second, 0) == 1
    assert queue.remove(first)
    assert not queue.remove(first)
    assert queue.position(second, 0) == 0
    assert queue.pop(0) == "b"
    assert not queue.remove(second)
    assert len(queue) == 0
    with pytest.raises(IndexError):
        queue.peek(0)


def test_retries_are_a_share_of_requests() -> None:
    budget = RetryBudget(share=0.2, floor=2, cap=3)
    assert [budget.withdraw() for _ in range(3)] == [True, True, False]
    for _ in range(5):
        budget.deposit()
    assert [budget.withdraw() for _ in range(2)] == [True, False]
    for _ in range(1000):
        budget.deposit()
    assert sum(budget.withdraw() for _ in range(10)) == 3


def test_a_server_that_takes_clearly_longer_gets_less_by_the_default() -> None:
    """Four times as long: an idle one is worth a fast one that has three requests."""
    fast, slow = Member("fast", typical_s=1.0, samples=10), Member("slow", typical_s=4.0, samples=10)
    balancer = Balancer("least_busy")
    for _ in range(10):
        balancer.choose([slow, fast])[0].record_start(0)
    assert (fast.active, slow.active) == (8, 2)


@pytest.mark.parametrize(("typical_s", "samples"), [(0.0, 0), (1.9, 10), (50.0, 9)])
def test_a_little_longer_or_not_known_is_no_reason(typical_s: float, samples: int) -> None:
    members = [Member("a", typical_s=1.0, samples=10), Member("b", typical_s=typical_s, samples=samples)]
    balancer = Balancer("least_busy")
    for _ in range(64):
        balancer.choose(members)[0].record_start(0)
    assert [member.active for member in members] == [32, 32]


def test_a_slow_one_is_tried_again_some_day_and_believed_when_it_is_well() -> None:
    fast, slow = Member("fast", typical_s=1.0, samples=10), Member("slow", typical_s=100.0, samples=10)
    balancer, tries = Balancer("least_busy"), 0
    while not slow.total:
        member, _ = balancer.choose([fast, slow])
        member.record_start(0)
        member.record_end(1.0)
        tries += 1
    assert 1000 < tries < 5000
    for _ in range(200):
        member, _ = balancer.choose([fast, slow])
        member.record_start(0)
        member.record_end(1.0)
    assert slow.total > 80


def test_the_usual_time_moves_slowly() -> None:
    member = Member("a")
    for took_s in [1.0] * 50 + [20.0]:
        member.record_start(0)
        member.record_end(took_s)
    assert 1.0 < member.typical_s < 2.0
