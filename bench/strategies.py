"""Compare the balancing strategies in a simulation, without sockets and without real time. `python -m bench.strategies`.

Only the choice is the product's own code. Servers have slots, and work on what is in a slot at their own
speed; a request that finds no free slot waits inside, in turn. Prefill is part of the work, and is shorter
where the server has the prompt's beginning in its cache. The balancer knows what it knows in production: its own
requests at once, those of others as the last probe found them. With a queue, as the appliance does with
llama.cpp, a server gets no more than its slots and the rest waits in front; without, as with engines that
name no limit, everything is sent on at once.

Printed per scenario: seconds from arrival to end (p50, p99), and how unevenly the servers were busy: the
busiest one's share of its own time over the idlest one's. Times are in units of the mean work of a request on
a server of speed 1.
"""

import argparse
import heapq
import random
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from appliance.base.balancing import STRATEGIES, Balancer, Member

REQUESTS = 8000
WARM_UP_REQUESTS = 500  # not counted
PROBE_S = 3.0  # between two probes of the engines' metrics
CACHED_CONVERSATIONS = 24  # per server
PREFILL_SHARE = 0.6  # of the mean work of a request of a conversation; the cache saves it
OVERRUN_S = 1000.0  # a p99 above it means that the servers did not keep up


@dataclass(slots=True)
class Job:
    """One request. `conversation` -1: of none; `server` -1: not sent yet."""

    arrived_s: float
    work: float
    conversation: int = -1
    gateway: int = 0
    server: int = -1
    sent_s: float = 0.0
    ended_s: float = 0.0


@dataclass(slots=True)
class Server:
    """One engine: slots, a queue inside, and a cache of conversations."""

    speed: float
    slots: int
    running: int = 0
    busy_s: float = 0.0
    waiting: deque[Job] = field(default_factory=deque)
    cache: OrderedDict[int, None] = field(default_factory=OrderedDict)

    @property
    def present(self) -> int:
        """Requests that run or wait in it."""
        return self.running + len(self.waiting)

    def start(self, job: Job) -> float:
        """Start a job in a slot; return the seconds that it will take."""
        work = job.work
        if job.conversation >= 0:
            if job.conversation in self.cache:
                work -= PREFILL_SHARE
            self.cache[job.conversation] = None
            self.cache.move_to_end(job.conversation)
            if len(self.cache) > CACHED_CONVERSATIONS:
                self.cache.popitem(last=False)
        took_s = work / self.speed
        self.running += 1
        self.busy_s += took_s / self.slots
        return took_s


@dataclass(frozen=True, slots=True)
class Scenario:
    """What arrives, and who works on it.

    Attributes:
        name: Heads its column.
        speeds: One per server.
        slots: Per server.
        load: Share of all servers' speed that the arrivals need.
        work: Draws the work of one request, mean 1.
        burst: Requests that arrive at once.
        conversations: How many there are; 0 = requests have nothing in common.
        gateways: Balancers in front of the same servers.
    """

    name: str
    speeds: tuple[float, ...]
    slots: int
    load: float
    work: Callable[[random.Random], float]
    burst: int = 1
    conversations: int = 0
    gateways: int = 1

    def jobs(self, seed: int) -> Iterator[Job]:
        """Yield the arrivals: the same ones for every strategy."""
        rng = random.Random(seed)
        rate, at_s = self.load * self.slots * sum(self.speeds) / self.burst, 0.0
        for number in range(REQUESTS):
            if number % self.burst == 0:
                at_s += rng.expovariate(rate)
            conversation = int(self.conversations * rng.random() ** 2) if self.conversations else -1
            work = self.work(rng)
            if conversation >= 0:
                work = work * (1 - PREFILL_SHARE) + PREFILL_SHARE
            yield Job(at_s, work, conversation, number % self.gateways)


class Gateway:
    """One balancer in front of the servers, with its own counts and its own estimate of the others'."""

    def __init__(self, servers: list[Server], strategy: str, seed: int, has_queue: bool) -> None:
        self.balancer = Balancer(strategy, seed=seed)
        self.members = [Member(str(number)) for number in range(len(servers))]
        self.servers, self.has_queue = servers, has_queue
        self.queue: deque[Job] = deque()

    def probe(self) -> None:
        """Read the requests of other gateways at the servers."""
        for member, server in zip(self.members, self.servers, strict=True):
            member.external = max(0.0, server.present - member.active)

    def choose(self, job: Job, now_s: float) -> int | None:
        """Choose a server for a job; return its number, None = all are full."""
        pairs = zip(self.members, self.servers, strict=True)
        ready = [
            member
            for member, server in pairs
            if not self.has_queue or member.active + member.external < server.slots
        ]
        if not ready:
            return None
        is_affine = job.conversation >= 0 and self.balancer.strategy == "prefix_affinity"
        prefixes = [job.conversation] if is_affine else []
        member, _ = self.balancer.choose(ready, prefixes=prefixes)
        if prefixes:
            self.balancer.remember(member, prefixes)
        member.record_start(now_s)
        return int(member.name)


class Simulation:
    """Runs one scenario under one strategy, event by event.

    Events are (seconds, number, job): a job that was not sent yet arrives, one that was sent ends, and None
    is a probe.
    """

    def __init__(self, scenario: Scenario, strategy: str, *, has_queue: bool, seed: int) -> None:
        self.servers = [Server(speed, scenario.slots) for speed in scenario.speeds]
        self.gateways = [
            Gateway(self.servers, strategy, seed + number, has_queue) for number in range(scenario.gateways)
        ]
        self.jobs = list(scenario.jobs(seed))
        self.now_s = 0.0
        self._left = len(self.jobs)
        self._count = len(self.jobs)
        self._events: list[tuple[float, int, Job | None]] = [
            (job.arrived_s, number, job) for number, job in enumerate(self.jobs)
        ]
        heapq.heapify(self._events)
        heapq.heappush(self._events, (0.0, -1, None))

    def run(self) -> tuple[list[float], list[float]]:
        """Return (seconds that each request took, share of its time that each server was busy)."""
        while self._left:
            self.now_s, _, job = heapq.heappop(self._events)
            if job is None:
                self._probe()
            elif job.server < 0:
                self._arrive(job)
            else:
                self._end(job)
        took = [job.ended_s - job.arrived_s for job in self.jobs[WARM_UP_REQUESTS:]]
        return took, [server.busy_s / self.now_s for server in self.servers]

    def _probe(self) -> None:
        for gateway in self.gateways:
            gateway.probe()
            self._serve_queue(gateway)
        heapq.heappush(self._events, (self.now_s + PROBE_S, -1, None))

    def _arrive(self, job: Job) -> None:
        gateway = self.gateways[job.gateway]
        if gateway.queue or not self._send(gateway, job):
            gateway.queue.append(job)

    def _end(self, job: Job) -> None:
        self._left -= 1
        job.ended_s = self.now_s
        server = self.servers[job.server]
        server.running -= 1
        self.gateways[job.gateway].members[job.server].record_end(self.now_s - job.sent_s)
        if server.waiting:
            self._start(server, server.waiting.popleft())
        for gateway in self.gateways:
            self._serve_queue(gateway)

    def _serve_queue(self, gateway: Gateway) -> None:
        while gateway.queue and self._send(gateway, gateway.queue[0]):
            gateway.queue.popleft()

    def _send(self, gateway: Gateway, job: Job) -> bool:
        """Send a job to a server; return whether one took it."""
        number = gateway.choose(job, self.now_s)
        if number is None:
            return False
        job.server, job.sent_s = number, self.now_s
        server = self.servers[number]
        if server.running < server.slots:
            self._start(server, job)
        else:
            server.waiting.append(job)
        return True

    def _start(self, server: Server, job: Job) -> None:
        self._count += 1
        heapq.heappush(self._events, (self.now_s + server.start(job), self._count, job))


def lognormal(sigma: float) -> Callable[[random.Random], float]:
    """Return a draw of work of mean 1, the more skewed the larger sigma."""
    return lambda rng: rng.lognormvariate(-sigma * sigma / 2, sigma)


SCENARIOS = [
    Scenario("equal lengths", (1, 1, 1, 1), 4, 0.8, lambda rng: 1.0),
    Scenario("skewed lengths", (1, 1, 1, 1), 4, 0.8, lognormal(1.2)),
    Scenario("one server 4 x slower", (1, 1, 1, 0.25), 4, 0.75, lognormal(1.0)),
    Scenario("bursts of 32", (1, 1, 1, 1), 4, 0.7, lognormal(0.7), burst=32),
    Scenario("conversations", (1, 1, 1, 1), 4, 0.8, lognormal(0.7), conversations=160),
    Scenario("two balancers", (1, 1, 1, 1), 4, 0.8, lognormal(1.0), gateways=2),
]


def measure(scenario: Scenario, strategy: str, *, has_queue: bool, seeds: int) -> str:
    """Return the cell of a table: the run with the middle p99 of `seeds` runs."""
    rows = []
    for seed in range(1, seeds + 1):
        took, shares = Simulation(scenario, strategy, has_queue=has_queue, seed=seed).run()
        took.sort()
        spread = max(shares) / max(min(shares), 1e-9)
        rows.append((took[int(len(took) * 0.99)], took[len(took) // 2], spread))
    p99, p50, spread = sorted(rows)[len(rows) // 2]
    return f"{p50:.1f} / {p99:.1f} / {spread:.1f}" if p99 < OVERRUN_S else "overrun"


def main() -> None:
    """Print one table with the queue in front, and one without."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument(
        "--seeds",
        type=int,
        default=3,
        help="runs per cell, each with other arrivals; the middle one is shown",
    )
    seeds = parser.parse_args().seeds
    for has_queue in (True, False):
        title = "With the queue in front" if has_queue else "Without it"
        print(f"\n{title}: p50 / p99 / busiest to idlest server\n")
        print("| | " + " | ".join(scenario.name for scenario in SCENARIOS) + " |")
        print("| --- |" + " --- |" * len(SCENARIOS))
        for strategy in STRATEGIES:
            cells = [measure(one, strategy, has_queue=has_queue, seeds=seeds) for one in SCENARIOS]
            print(f"| `{strategy}` | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
