"""Requests for more models than can be loaded: the traces of bench/swaps.py.

The same seed gives the same trace.
"""

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

STOP_S = 0.5  # until a process has exited and its memory is free


@dataclass(frozen=True)
class Model:
    load_s: float
    size: int = 1


@dataclass(slots=True, eq=False)
class Job:
    """One request. `pause_s`: after the response before it, or from the start."""

    pause_s: float
    alias: str
    work_s: float
    at_s: float = 0.0
    started_s: float = -1.0
    unserved_s: float = -1.0  # until its model got the next slot, for any request
    has_left: bool = False
    following: "Iterator[Job] | None" = None


@dataclass(frozen=True)
class Trace:
    """Requests, and the resources to serve them. `clients`: each sends its requests one after another."""

    name: str
    models: dict[str, Model]
    clients: list[list[Job]]
    max_models: int = 1
    memory: int = 1000
    extra_wait_s: float = 30.0

    def limit_s(self) -> float:
        """Return how long a requested model may wait at most: until all others have been served once."""
        turns = max(1, math.ceil(len(self.models) / self.max_models) - 1)
        longest_s = max(job.work_s for client in self.clients for job in client)
        return turns * (
            self.extra_wait_s + 2 * (longest_s + STOP_S + max(model.load_s for model in self.models.values()))
        )


def arrivals(
    rng: random.Random,
    seconds: float,
    rate: float,
    alias: Callable[[], str],
    work: Callable[[], float],
) -> list[list[Job]]:
    """Make requests at random times, independent of responses."""
    at_s, found = 0.0, []
    while (at_s := at_s + rng.expovariate(rate)) < seconds:
        found.append([Job(at_s, alias(), work())])
    return found


def skewed(rng: random.Random, mean_s: float) -> Callable[[], float]:
    return lambda: min(20 * mean_s, mean_s * rng.lognormvariate(-0.32, 0.8))


def a_b_a_b(rng: random.Random, every_s: float = 1.0, count: int = 300) -> Trace:
    jobs = [[Job(number * every_s, "ab"[number % 2], 1.0)] for number in range(count)]
    return Trace(f"a-b-a-b, one every {every_s:g} s", {"a": Model(4.0), "b": Model(4.0)}, jobs)


def two_crowds(rng: random.Random) -> Trace:
    work = skewed(rng, 2.0)
    clients = [
        [Job(rng.expovariate(1.0), alias, work()) for _ in range(60)] for alias in "ab" for _ in range(4)
    ]
    return Trace("4 + 4 clients of two models", {"a": Model(5.0), "b": Model(5.0)}, clients)


def one_agent(rng: random.Random) -> Trace:
    return Trace(
        "one client, a and b in turn",
        {"a": Model(3.0), "b": Model(3.0)},
        [[Job(0.2, "ab"[number % 2], 2.0) for number in range(100)]],
    )


def zipf(rng: random.Random, seconds: float = 1800.0) -> Trace:
    aliases = [f"m{number}" for number in range(12)]
    weights = [1 / (number + 1) for number in range(12)]
    jobs = arrivals(rng, seconds, 0.4, lambda: rng.choices(aliases, weights)[0], skewed(rng, 2.0))
    return Trace(
        "12 models by Zipf, 3 max_models",
        {alias: Model(rng.uniform(2.0, 10.0)) for alias in aliases},
        jobs,
        3,
    )


def bursts(rng: random.Random) -> Trace:
    work, jobs, at_s = skewed(rng, 2.0), [], 0.0
    while (at_s := at_s + rng.uniform(5, 25)) < 1800:
        alias = f"m{rng.randrange(6)}"
        jobs += [[Job(at_s + rng.uniform(0, 2), alias, work())] for _ in range(rng.randint(2, 16))]
    return Trace(
        "bursts over 6 models, 2 max_models", {f"m{number}": Model(4.0) for number in range(6)}, jobs, 2
    )


def big_and_small(rng: random.Random, seconds: float = 1800.0) -> Trace:
    models = {"big": Model(20.0, 20)} | {f"s{number}": Model(2.0, 4) for number in range(8)}
    small = arrivals(rng, seconds, 0.8, lambda: f"s{rng.randrange(8)}", skewed(rng, 2.0))
    return Trace(
        "one big, 8 small, memory for 6 small",
        models,
        small + arrivals(rng, seconds, 0.02, lambda: "big", skewed(rng, 6.0)),
        8,
        24,
    )


def never_idle(rng: random.Random) -> Trace:
    work = skewed(rng, 2.0)
    crowd = [[Job(rng.expovariate(2.0), "a", work()) for _ in range(200)] for _ in range(6)]
    return Trace(
        "one never idle, one requested now and then",
        {"a": Model(5.0), "b": Model(5.0)},
        crowd + arrivals(rng, 400, 1 / 60, lambda: "b", work),
    )


def overload(rng: random.Random, seconds: float = 600.0) -> Trace:
    jobs = arrivals(rng, seconds, 5.0, lambda: rng.choices("abcd", [4, 2, 1, 1])[0], skewed(rng, 2.0))
    return Trace("overload, 4 models, 2 max_models", {alias: Model(5.0) for alias in "abcd"}, jobs, 2)


TRACES: dict[str, Callable[[random.Random], Trace]] = {
    "a-b-a-b": a_b_a_b,
    "slow a-b-a-b": lambda rng: a_b_a_b(rng, 10.0, 100),
    "crowds": two_crowds,
    "agent": one_agent,
    "zipf": zipf,
    "bursts": bursts,
    "big": big_and_small,
    "never-idle": never_idle,
    "overload": overload,
}
