"""The model manager's scheduler beside two simpler ones, in virtual time.

`python -m bench.swaps [--seeds 3] [--only a-b-a-b]`

    ours    drives `scheduler.next_step` as the manager does
    fcfs    first come, first served: requests are handled strictly in order of arrival. One whose model is
            loaded waits there for a slot; else the model that was loaded longest ago gets no more requests,
            is unloaded once it is idle, and replaced
    lru     least recently used: a request whose model is loaded is served whenever a slot is free. The oldest of
            the others replaces the idle model that was used least recently, as soon as there is one

A request holds its slot for a time that is known beforehand, whatever else runs; one load runs at a time; a
request that waited TIMEOUT_S is given up. Nothing sleeps, and the same seed gives the same table.
"""

import argparse
import heapq
import math
import random
import statistics
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from appliance.models.scheduler.demand import Demand
from appliance.models.scheduler.fit import find_devices
from appliance.models.scheduler.scheduler import next_step
from appliance.models.scheduler.state import (
    Drain,
    ModelFacts,
    QueueState,
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
from bench.traces import STOP_S, TRACES, Job, Trace

TIMEOUT_S = 300.0  # queue_timeout_sec
SLOTS = 4


@dataclass(slots=True, eq=False)
class Server:
    serial: int
    alias: str
    started_s: float
    phase: str = "loading"
    active: int = 0
    is_draining: bool = False
    ready_s: float = 0.0
    idle_since_s: float = 0.0
    queue: list[Job] = field(default_factory=list)  # inside the server; only used by fcfs


class Sim:
    """Simulates what takes time; a policy makes the decisions."""

    def __init__(self, trace: Trace, turn: Callable[["Sim"], float | None]) -> None:
        self.trace, self._turn = trace, turn
        self.now_s = 0.0
        self.servers: dict[int, Server] = {}
        self.queues: dict[str, deque[Job]] = {alias: deque() for alias in trace.models}
        self.done: list[Job] = []
        self.swaps = self.loads = 0
        self.reserved: set[str] = set()
        self.evicted_s: dict[str, float] = {}
        self.demand = {alias: Demand() for alias in trace.models}
        self._unserved: dict[str, list[Job]] = {alias: [] for alias in trace.models}
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0
        self._waking_s = math.inf

    def run(self) -> "Sim":
        for client in self.trace.clients:
            self._next(iter(client))
        while self._events:
            self.now_s, _, event = heapq.heappop(self._events)
            event()
            again_s = self._turn(self)
            if again_s is not None and self.now_s + again_s < self._waking_s:
                self._waking_s = self.now_s + max(0.005, again_s)
                self._at(self._waking_s, self._wake)
        return self

    def _at(self, when_s: float, event: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._events, (when_s, self._count, event))

    def _wake(self) -> None:
        self._waking_s = math.inf

    def _next(self, client: Iterator[Job] | None) -> None:
        job = next(client, None) if client is not None else None
        if job is not None:
            job.following = client
            self._at(self.now_s + job.pause_s, lambda: self._arrive(job))

    def _arrive(self, job: Job) -> None:
        job.at_s = self.now_s
        self._unserved[job.alias].append(job)
        self.demand[job.alias].add(self.now_s)
        self.queues[job.alias].append(job)
        self._at(self.now_s + TIMEOUT_S, lambda: self._give_up(job))

    def _give_up(self, job: Job) -> None:
        if job.started_s < 0:
            job.has_left = True
            if job in self._unserved[job.alias]:
                self._unserved[job.alias].remove(job)
                job.unserved_s = TIMEOUT_S
            self._forget(job)
            self.done.append(job)
            self._next(job.following)

    def _forget(self, job: Job) -> None:
        for some in (self.queues[job.alias], *(server.queue for server in self.servers.values())):
            if job in some:
                some.remove(job)
        if not self.queues[job.alias]:
            self.reserved.discard(job.alias)

    # ---- what a policy may do

    def serve(self, server: Server) -> None:
        self.begin(self.queues[server.alias].popleft(), server)

    def oldest(self, *, is_loaded: bool = True) -> Job | None:
        """Return the oldest request; only of models without a llama-server unless `is_loaded`."""
        there = set() if is_loaded else {server.alias for server in self.servers.values()}
        return min(
            (queue[0] for alias, queue in self.queues.items() if queue and alias not in there),
            key=lambda job: job.at_s,
            default=None,
        )

    def begin(self, job: Job, server: Server) -> None:
        assert server.phase == "ready"
        assert server.active < SLOTS
        server.active += 1
        job.started_s = self.now_s
        for other in self._unserved[job.alias]:
            other.unserved_s = self.now_s - other.at_s
        self._unserved[job.alias].clear()
        self._at(self.now_s + job.work_s, lambda: self._end(job, server))

    def start(self, alias: str) -> None:
        self.loads += 1
        self.reserved.discard(alias)
        server = Server(self.loads, alias, self.now_s)
        self.servers[server.serial] = server
        assert self.free() >= 0
        assert len({one.alias for one in self.servers.values()}) <= self.trace.max_models
        self._at(self.now_s + self.trace.models[alias].load_s, lambda: self._finish_load(server))

    def stop(self, server: Server) -> None:
        assert server.phase == "ready"
        assert not server.active
        server.phase = "stopping"
        self.swaps += 1
        self._at(self.now_s + STOP_S, lambda: self._finish_stop(server))

    # ---- what happens

    def _end(self, job: Job, server: Server) -> None:
        server.active -= 1
        server.idle_since_s = self.now_s
        self.done.append(job)
        self._next(job.following)

    def _finish_load(self, server: Server) -> None:
        server.phase = "ready"
        server.ready_s = server.idle_since_s = self.now_s

    def _finish_stop(self, server: Server) -> None:
        del self.servers[server.serial]

    # ---- what a policy may know

    def free(self) -> int:
        return self.trace.memory - sum(
            self.trace.models[server.alias].size for server in self.servers.values()
        )

    def facts(self, alias: str) -> ModelFacts:
        model = self.trace.models[alias]
        return ModelFacts(alias, model.size, load_s=model.load_s)

    def residents(self) -> list[ResidentRunner]:
        found = []
        for one in self.servers.values():
            model = self.trace.models[one.alias]
            found.append(
                ResidentRunner(
                    one.serial,
                    one.alias,
                    one.phase,
                    SLOTS,
                    one.active,
                    {RAM: model.size},  # type: ignore[arg-type]
                    0.0 if one.active else self.now_s - one.idle_since_s,
                    self.now_s - one.ready_s,
                    model.load_s,
                    self.demand[one.alias].rate(self.now_s),
                    is_draining=one.is_draining,
                )
            )
        return found

    def state(self) -> SchedulerState:
        queues = [
            QueueState(
                alias,
                len(queue),
                0,
                self.now_s - queue[0].at_s,
                has_reservation=alias in self.reserved,
                since_eviction_s=self.now_s - self.evicted_s.get(alias, -math.inf),
            )
            for alias, queue in self.queues.items()
            if queue
        ]
        return SchedulerState(
            queues,
            self.residents(),
            {queue.alias: self.facts(queue.alias) for queue in queues},
            {RAM: self.free()},
            {RAM: self.trace.memory},
            SchedulerRules(self.trace.max_models, self.trace.extra_wait_s, 0),
        )

    def note_eviction(self, server: Server, alias: str) -> None:
        self.reserved.add(alias)
        self.evicted_s[server.alias] = self.now_s


# ---- policies: each does what is to be done now, and says when time alone would change that


def ours(sim: Sim) -> float | None:
    while True:
        step = next_step(sim.state())
        if isinstance(step, Serve):
            sim.serve(sim.servers[step.serial])
        elif isinstance(step, Start):
            sim.start(step.alias)
        elif isinstance(step, Stop):
            sim.note_eviction(sim.servers[step.serial], step.alias)
            sim.stop(sim.servers[step.serial])
        elif isinstance(step, Drain):
            sim.note_eviction(sim.servers[step.serial], step.alias)
            sim.servers[step.serial].is_draining = True
        elif isinstance(step, Resume):
            sim.servers[step.serial].is_draining = False
        else:
            assert isinstance(step, Wait), step
            return step.again_s


def fcfs(sim: Sim) -> None:
    for server in sim.servers.values():
        while server.queue and server.phase == "ready" and server.active < SLOTS:
            sim.begin(server.queue.pop(0), server)
    while (job := sim.oldest()) is not None:
        mine = next(
            (one for one in sim.servers.values() if one.alias == job.alias and one.phase == "ready"), None
        )
        if mine is not None:
            if mine.active < SLOTS:
                sim.serve(mine)
            else:
                mine.queue.append(sim.queues[job.alias].popleft())
            continue
        if any(one.phase != "ready" for one in sim.servers.values()):
            return
        if find_devices(sim.facts(job.alias), sim.state()) is not None:
            sim.start(job.alias)
            return
        oldest = min(sim.servers.values(), key=lambda one: one.started_s)
        if oldest.active or oldest.queue:
            return
        sim.stop(oldest)


def lru(sim: Sim) -> None:
    for server in sim.servers.values():
        while sim.queues[server.alias] and server.phase == "ready" and server.active < SLOTS:
            sim.serve(server)
    job = sim.oldest(is_loaded=False)
    if job is None or any(one.phase != "ready" for one in sim.servers.values()):
        return
    if find_devices(sim.facts(job.alias), sim.state()) is not None:
        sim.start(job.alias)
        return
    idle = sorted((one for one in sim.servers.values() if not one.active), key=lambda one: one.idle_since_s)
    removed: list[Server] = []
    for one in idle:
        removed.append(one)
        if (
            find_devices(sim.facts(job.alias), sim.state(), removed=[server.serial for server in removed])
            is not None
        ):
            for server in removed:
                sim.stop(server)
            return


POLICIES: dict[str, Callable[[Sim], float | None]] = {"ours": ours, "fcfs": fcfs, "lru": lru}


# ---- figures


@dataclass(frozen=True)
class Row:
    """The result of one trace.

    Waits in seconds, from the request to its slot; a request that was given up waited TIMEOUT_S.

    starved   requests whose model was not given a single slot for longer than Trace.limit_s while they waited
    end_s     when the last response was complete
    """

    swaps: float
    p50_s: float
    p99_s: float
    max_s: float
    starved: float
    end_s: float
    served: float
    requested: float


def replay(trace: Trace, policy: str) -> Row:
    """Replay a trace once; the requests hold their times afterwards."""
    sim = Sim(trace, POLICIES[policy]).run()
    waits = sorted((TIMEOUT_S if job.has_left else job.started_s - job.at_s) for job in sim.done)
    starved = sum(job.unserved_s > trace.limit_s() for job in sim.done)
    served = [job for job in sim.done if not job.has_left]
    return Row(
        sim.swaps,
        waits[len(waits) // 2],
        waits[int(len(waits) * 0.99)],
        waits[-1],
        starved,
        max(job.started_s + job.work_s for job in served),
        len(served),
        sum(map(len, trace.clients)),
    )


def mean(rows: list[Row]) -> Row:
    return Row(*(statistics.fmean(getattr(row, name) for row in rows) for name in Row.__dataclass_fields__))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument(
        "--seeds",
        type=int,
        default=5,
        help="runs of each trace, each with other arrivals; their mean is shown",
    )
    parser.add_argument("--only", choices=list(TRACES), help="one trace")
    requested = parser.parse_args()
    print(
        "| trace | | swaps | p50 s | p99 s | longest s | starved | last response s | served |\n| --- |"
        + " --- |" * 8
    )
    for name in [requested.only] if requested.only else TRACES:
        for policy in POLICIES:
            row = mean(
                [replay(TRACES[name](random.Random(seed)), policy) for seed in range(1, requested.seeds + 1)]
            )
            title = TRACES[name](random.Random(1)).name if policy == "ours" else ""
            print(
                f"| {title} | {policy} | {row.swaps:.0f} | {row.p50_s:.1f} | {row.p99_s:.1f} | {row.max_s:.1f} | {row.starved:.0f} | {row.end_s:.0f} | "
                f"{row.served:.0f} of {row.requested:.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
