"""The strategies beside each other in a simulation: no sockets and no real time, only the product's own choice. `python -m bench.strategies`

Servers have slots, and work on what is in a slot at their own speed; what finds no free slot waits inside in turn. Prefill is counted in
the work, and is shorter where the server has the beginning in its cache. The balancer's knowledge is as in life: its own requests at
once, those of others as the last look found them. With `line`, as the appliance does with llama.cpp, a server gets no more than its
slots and the rest waits at the door; without, as with engines that say no limit, all is sent on at once.

Printed per scenario: seconds from arrival to the end (p50, p99), and how unevenly the servers were busy: the busiest one's share of its
own time over the idlest one's. Times are in units of the mean work of a request on a server of speed 1.
"""

import argparse
import heapq
import random
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from appliance.base.balancing import STRATEGIES, Balancer, Member

REQUESTS = 8000
WARM_UP = 500  # requests that are not counted
LOOK_S = 3.0  # between looks at the engines' metrics
CACHED = 24  # conversations that a server's cache holds
PREFILL = 0.6  # of the mean work of a request of a conversation; the cache saves it


@dataclass(slots=True)
class Job:
    at_s: float
    work: float
    conversation: int = -1
    door: int = 0
    server: int = -1
    sent_s: float = 0.0
    ended_s: float = 0.0


@dataclass(slots=True)
class Server:
    speed: float
    slots: int
    running: int = 0
    busy_s: float = 0.0
    waiting: deque[Job] = field(default_factory=deque)
    cache: OrderedDict[int, None] = field(default_factory=OrderedDict)

    @property
    def present(self) -> int:
        return self.running + len(self.waiting)

    def seconds(self, job: Job) -> float:
        """Give how long the job will take here, and remember its beginning."""
        work = job.work
        if job.conversation >= 0:
            if job.conversation in self.cache:
                work -= PREFILL
            self.cache[job.conversation] = None
            self.cache.move_to_end(job.conversation)
            if len(self.cache) > CACHED:
                self.cache.popitem(last=False)
        return work / self.speed


@dataclass(frozen=True, slots=True)
class Scenario:
    name: str
    speeds: tuple[float, ...]
    slots: int
    rho: float
    work: Callable[[random.Random], float]
    burst: int = 1
    conversations: int = 0
    doors: int = 1

    def jobs(self, seed: int) -> Iterator[Job]:
        """Give the arrivals: the same for every strategy."""
        rng = random.Random(seed)
        rate, at_s = self.rho * self.slots * sum(self.speeds) / self.burst, 0.0
        for number in range(REQUESTS):
            if number % self.burst == 0:
                at_s += rng.expovariate(rate)
            conversation = int(self.conversations * rng.random() ** 2) if self.conversations else -1
            work = self.work(rng)
            yield Job(
                at_s,
                work * (1 - PREFILL) + PREFILL if conversation >= 0 else work,
                conversation,
                number % self.doors,
            )


class Door:
    """One balancer in front of the servers, with its own counts and its own idea of the others'."""

    def __init__(self, servers: list[Server], strategy: str, seed: int, has_line: bool) -> None:
        self.balancer = Balancer(strategy, seed=seed)
        self.members = [Member(str(number)) for number in range(len(servers))]
        self.servers, self.has_line = servers, has_line
        self.line: deque[Job] = deque()

    def look(self) -> None:
        for member, server in zip(self.members, self.servers, strict=True):
            member.external = max(0.0, server.present - member.active)

    def choose(self, job: Job, now_s: float) -> int | None:
        """Give the number of a server, None = all are full."""
        ready = [
            m
            for m, s in zip(self.members, self.servers, strict=True)
            if not self.has_line or m.active + m.external < s.slots
        ]
        if not ready:
            return None
        prefixes = (
            [job.conversation]
            if job.conversation >= 0 and self.balancer.strategy == "prefix_affinity"
            else []
        )
        member, _ = self.balancer.choose(ready, prefixes=prefixes)
        if prefixes:
            self.balancer.remember(member, prefixes)
        member.record_start(now_s)
        return int(member.name)


def simulate(
    scenario: Scenario, strategy: str, *, has_line: bool, seed: int = 1
) -> tuple[list[float], list[float]]:
    """Give (seconds of each request, busy share of each server)."""
    servers = [Server(speed, scenario.slots) for speed in scenario.speeds]
    doors = [Door(servers, strategy, seed + n, has_line) for n in range(scenario.doors)]
    jobs = list(scenario.jobs(seed))
    events: list[tuple[float, int, Job | None]] = [(job.at_s, number, job) for number, job in enumerate(jobs)]
    count = len(events)
    heapq.heapify(events)
    heapq.heappush(events, (0.0, -1, None))

    def begin(server: Server, job: Job, now_s: float) -> None:
        nonlocal count
        server.running += 1
        took_s = server.seconds(job)
        server.busy_s += took_s / server.slots
        count += 1
        heapq.heappush(events, (now_s + took_s, count, job))

    def send(door: Door, job: Job, now_s: float) -> bool:
        number = door.choose(job, now_s)
        if number is None:
            return False
        job.server, job.sent_s = number, now_s
        server = servers[number]
        if server.running < server.slots:
            begin(server, job, now_s)
        else:
            server.waiting.append(job)
        return True

    left = len(jobs)
    now_s = 0.0
    while left:
        now_s, _, job = heapq.heappop(events)
        if job is None:  # a look, by every door
            for door in doors:
                door.look()
                while door.line and send(door, door.line[0], now_s):
                    door.line.popleft()
            heapq.heappush(events, (now_s + LOOK_S, -1, None))
        elif job.server < 0:  # it arrives
            door = doors[job.door]
            if door.line or not send(door, job, now_s):
                door.line.append(job)
        else:  # it ends
            left -= 1
            job.ended_s = now_s
            server, door = servers[job.server], doors[job.door]
            server.running -= 1
            door.members[job.server].record_end(now_s - job.sent_s)
            if server.waiting:
                begin(server, server.waiting.popleft(), now_s)
            for one in doors:
                while one.line and send(one, one.line[0], now_s):
                    one.line.popleft()
    return [job.ended_s - job.at_s for job in jobs[WARM_UP:]], [server.busy_s / now_s for server in servers]


def lognormal(sigma: float) -> Callable[[random.Random], float]:
    """Work of mean 1, the more skewed the larger sigma."""
    return lambda rng: rng.lognormvariate(-sigma * sigma / 2, sigma)


SCENARIOS = [
    Scenario("equal lengths", (1, 1, 1, 1), 4, 0.8, lambda rng: 1.0),
    Scenario("skewed lengths", (1, 1, 1, 1), 4, 0.8, lognormal(1.2)),
    Scenario("one server 4 x slower", (1, 1, 1, 0.25), 4, 0.75, lognormal(1.0)),
    Scenario("bursts of 32", (1, 1, 1, 1), 4, 0.7, lognormal(0.7), burst=32),
    Scenario("conversations", (1, 1, 1, 1), 4, 0.8, lognormal(0.7), conversations=160),
    Scenario("two balancers", (1, 1, 1, 1), 4, 0.8, lognormal(1.0), doors=2),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument(
        "--seeds", type=int, default=3, help="runs per row, each with other arrivals; the middle one is shown"
    )
    seeds = parser.parse_args().seeds
    for has_line in (True, False):
        print(
            f"\n{'With the line at the door' if has_line else 'Without it'}: p50 / p99 / busiest to idlest server\n"
        )
        print("| | " + " | ".join(s.name for s in SCENARIOS) + " |\n| --- |" + " --- |" * len(SCENARIOS))
        for strategy in STRATEGIES:
            cells = []
            for scenario in SCENARIOS:
                rows = []
                for seed in range(1, seeds + 1):
                    took, shares = simulate(scenario, strategy, has_line=has_line, seed=seed)
                    took.sort()
                    rows.append(
                        (
                            took[int(len(took) * 0.99)],
                            took[len(took) // 2],
                            max(shares) / max(min(shares), 1e-9),
                        )
                    )
                p99, p50, spread = sorted(rows)[len(rows) // 2]
                cells.append(f"{p50:.1f} / {p99:.1f} / {spread:.1f}" if p99 < 1000 else "overrun")
            print(f"| `{strategy}` | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
