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
def test_each_strategy_chooses_as_described(
    strategy: str, state: dict[str, list[float]], wanted: str
) -> None:
    assert Balancer(strategy).choose(members(**state))[0].name == wanted


def test_shares_follow_weights_and_interleave() -> None:
    rows = members(weight=[3.0, 2.0, 1.0])
    assert shares("weighted_round_robin", rows, 600) == {"m0": 300, "m1": 200, "m2": 100}
    balancer = Balancer("weighted_round_robin")
    fresh = members(weight=[2.0, 1.0, 1.0])
    assert [balancer.choose(fresh)[0].name for _ in range(4)] == ["m0", "m1", "m2", "m0"]


def test_change_of_strategy_keeps_the_counters() -> None:
    rows = members(weight=[1, 1])
    shares("round_robin", rows, 10)
    balancer = Balancer("round_robin")
    balancer.strategy = "equal_weighted"
    assert [row.total for row in rows] == [5, 5]
    with pytest.raises(ValueError, match="least_busy"):
        balancer.strategy = "best"


def test_mean_is_half_old_half_new() -> None:
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
def test_single_member_is_only_one(strategy: str) -> None:
    (row,) = members(weight=[1])
    assert Balancer(strategy).choose([row], prefixes=[1]) == (row, "only_one")


def test_new_member_is_not_flooded() -> None:
    rows, newcomer = members(total=[1000, 1002]), Member("new")
    align_total(newcomer, rows)
    assert newcomer.total == 1000


@pytest.mark.parametrize(
    ("gib", "price", "weight"),
    [(80, None, 3.0), (48, 2.0, 2.0), (24, 0.5, 1.8), (16, 0.99, 1.2), (16, 1.0, 1.0)],
)
def test_weights_by_memory_and_price(gib: float, price: float | None, weight: float) -> None:
    assert compute_vram_weight(gib, price) == pytest.approx(weight)


def test_least_busy_sends_less_to_a_clearly_slower_server() -> None:
    """Four times as long: an idle one is worth a fast one that has three requests."""
    fast, slow = Member("fast", typical_s=1.0, samples=10), Member("slow", typical_s=4.0, samples=10)
    balancer = Balancer("least_busy")
    for _ in range(10):
        balancer.choose([slow, fast])[0].record_start(0)
    assert (fast.active, slow.active) == (8, 2)


@pytest.mark.parametrize(("typical_s", "samples"), [(0.0, 0), (1.9, 10), (50.0, 9)])
def test_small_or_unknown_difference_is_ignored(typical_s: float, samples: int) -> None:
    members = [Member("a", typical_s=1.0, samples=10), Member("b", typical_s=typical_s, samples=samples)]
    balancer = Balancer("least_busy")
    for _ in range(64):
        balancer.choose(members)[0].record_start(0)
    assert [member.active for member in members] == [32, 32]


def test_slow_server_is_tried_again_and_recovers() -> None:
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


def test_typical_time_moves_slowly() -> None:
    member = Member("a")
    for took_s in [1.0] * 50 + [20.0]:
        member.record_start(0)
        member.record_end(took_s)
    assert 1.0 < member.typical_s < 2.0
