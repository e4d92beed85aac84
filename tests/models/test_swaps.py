"""Swaps in virtual time, by the simulation of bench/swaps.py on short traces.

What is promised beside first come, first served.
"""

import random
from collections.abc import Callable

import pytest

from bench.swaps import POLICIES, Row, replay
from bench.traces import (
    STOP_S,
    Trace,
    a_b_a_b,
    big_and_small,
    bursts,
    never_idle,
    one_agent,
    overload,
    two_crowds,
    zipf,
)

SHORT: dict[str, Callable[[random.Random], Trace]] = {
    "a-b-a-b": a_b_a_b,
    "crowds": two_crowds,
    "agent": one_agent,
    "zipf": lambda rng: zipf(rng, 600),
    "never-idle": never_idle,
    "big": lambda rng: big_and_small(rng, 600),
    "overload": lambda rng: overload(rng, 120),
}


def run(make: Callable[[random.Random], Trace], policy: str) -> Row:
    return replay(make(random.Random(1)), policy)


def test_a_b_a_b_makes_at_most_half_the_swaps_of_fcfs() -> None:
    ours, fcfs = run(a_b_a_b, "ours"), run(a_b_a_b, "fcfs")
    assert ours.swaps <= fcfs.swaps / 2
    assert ours.served == ours.requested
    trace = a_b_a_b(random.Random(1))
    # At most one response and the swap:
    assert ours.max_s <= trace.extra_wait_s + 1.0 + STOP_S + trace.models["a"].load_s


def test_two_crowds_wait_less_with_a_tenth_of_the_swaps() -> None:
    ours, fcfs, lru = (run(two_crowds, policy) for policy in POLICIES)
    assert ours.swaps <= fcfs.swaps / 10
    assert ours.p99_s < min(fcfs.p99_s, lru.p99_s)
    assert ours.end_s < fcfs.end_s / 2


@pytest.mark.parametrize("name", SHORT)
def test_nobody_starves(name: str) -> None:
    assert run(SHORT[name], "ours").starved == 0


def test_evicting_only_idle_models_starves() -> None:
    """Why the limit exists: without it, in the same trace, a queue that waits for an idle model waits for ever."""
    lru, ours = run(never_idle, "lru"), run(never_idle, "ours")
    assert lru.starved > 0
    assert ours.served == ours.requested


@pytest.mark.parametrize("name", ["zipf", "big"])
def test_nobody_waits_longer_for_it(name: str) -> None:
    ours, fcfs = run(SHORT[name], "ours"), run(SHORT[name], "fcfs")
    assert ours.p99_s <= fcfs.p99_s
    assert ours.swaps <= fcfs.swaps


def test_alternating_client_waits_no_longer_than_needed() -> None:
    ours, fcfs = run(one_agent, "ours"), run(one_agent, "fcfs")
    assert (ours.swaps, ours.max_s) == (fcfs.swaps, fcfs.max_s)


def test_the_same_seed_gives_the_same_figures() -> None:
    assert run(bursts, "ours") == run(bursts, "ours")
