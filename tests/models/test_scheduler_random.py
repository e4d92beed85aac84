"""Random states, each run by a naive manager that does what the scheduler says: what must always hold.

Time is a number that the test moves; nothing sleeps. Each state is made from its seed, so that a failing one
can be run again.
"""

import random
from dataclasses import dataclass, field, replace

import pytest

from appliance.models.scheduler.demand import Demand
from appliance.models.scheduler.scheduler import next_step
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
from appliance.models.table.groups import Group, conflicts_of

MAX_STEPS = 200  # of one turn
EVENTS = 60  # while requests come
MAX_EVENTS = 3000  # until all are answered
MARGIN = 1


@dataclass
class Server:
    resident: ResidentRunner
    ready_at_s: float = 0.0
    idle_since_s: float = 0.0


@dataclass
class RandomManager:
    """Random models and memory, and a naive manager. Memory in single bytes: the numbers stay small."""

    rng: random.Random
    now_s: float = 1000.0
    servers: dict[int, Server] = field(default_factory=dict)
    waiting: dict[str, list[float]] = field(default_factory=dict)
    reserved: set[str] = field(default_factory=set)
    evicted_s: dict[str, float] = field(default_factory=dict)
    demand: dict[str, Demand] = field(default_factory=dict)
    answered: int = 0
    refused: int = 0
    arrived: int = 0

    def __post_init__(self) -> None:
        rng = self.rng
        gpus = rng.choice([0, 0, 1, 2, 3])
        self.total = {RAM: rng.randint(8, 40)} | {index: rng.randint(8, 24) for index in range(gpus)}
        self.rules = SchedulerRules(
            rng.randint(1, 4), rng.choice([0.0, 5.0, 30.0]), MARGIN, rng.choice([1.0, 10.0])
        )
        self.facts = {}
        for number in range(rng.randint(2, 7)):
            alias = f"m{number}"
            self.facts[alias] = ModelFacts(
                alias,
                rng.randint(1, 30),
                bool(gpus) and rng.random() < 0.7,
                rng.choice([0.2, 1.0, 8.0, 60.0]),
                rng.choice([1, 1, 1, 2, 3]),
                rng.random() < 0.05,
            )
        self.pinned = {alias for alias in self.facts if rng.random() < 0.15}
        self.evicts = {alias: rng.random() < 0.9 for alias in self.facts}
        self.priority = {alias: rng.randint(0, 2) for alias in self.facts}
        self.stays = {alias: rng.choice([None, None, 20.0]) for alias in self.facts}
        self.foreign = {device: rng.randint(0, 4) for device in self.total}
        self.conflicts = self.random_groups() if rng.random() < 0.5 else {}

    def random_groups(self) -> dict[str, frozenset[str]]:
        aliases = list(self.facts)
        cut = self.rng.randint(1, len(aliases))

        def flag() -> bool:
            return self.rng.random() < 0.5

        groups = {
            name: Group(members=members, swap=flag(), exclusive=flag(), persistent=flag())
            for name, members in (("x", tuple(aliases[:cut])), ("y", tuple(aliases[cut : cut + 2])))
            if members
        }
        return conflicts_of(groups, aliases)

    # ---- what the scheduler sees

    def free(self) -> dict[int, int]:
        free = {device: size - self.foreign[device] for device, size in self.total.items()}
        for server in self.servers.values():
            for device, size in server.resident.memory.items():
                free[device] -= size
        return free

    def state(self) -> SchedulerState:
        queues = [
            QueueState(
                alias,
                len(since),
                0,
                self.now_s - since[0],
                self.priority[alias],
                self.evicts[alias],
                alias in self.reserved,
                self.now_s - self.evicted_s.get(alias, -1e9),
            )
            for alias, since in self.waiting.items()
            if since
        ]
        return SchedulerState(
            queues,
            [self.seen(server) for server in self.servers.values()],
            self.facts,
            self.free(),
            self.total,
            self.rules,
            self.conflicts,
        )

    def seen(self, server: Server) -> ResidentRunner:
        one = server.resident
        idle_s = 0.0 if one.active else self.now_s - server.idle_since_s
        expires_in_s = self.stays[one.alias]
        return replace(
            one,
            idle_s=idle_s,
            ready_s=self.now_s - server.ready_at_s,
            demand=self.demand[one.alias].rate(self.now_s),
            is_pinned=one.alias in self.pinned,
            expires_in_s=None if expires_in_s is None else max(0.0, expires_in_s - idle_s),
        )

    # ---- what happens

    def ask(self, alias: str) -> None:
        self.arrived += 1
        self.demand.setdefault(alias, Demand()).add(self.now_s)
        self.waiting.setdefault(alias, []).append(self.now_s)

    def change(self, key: int, **how: object) -> None:
        self.servers[key].resident = replace(self.servers[key].resident, **how)  # type: ignore[arg-type]

    def happens(self) -> bool:
        """Let one thing happen that takes time: a load, an answer or an unloading ends.

        False = there is none.
        """
        choices = [
            key
            for key, server in self.servers.items()
            if server.resident.phase != "ready" or server.resident.active
        ]
        if not choices:
            return False
        key = self.rng.choice(choices)
        server = self.servers[key]
        self.now_s += self.rng.choice([0.0, 0.1, 1.0, 10.0])
        if server.resident.phase == "loading":
            self.change(key, phase="ready")
            server.ready_at_s = server.idle_since_s = self.now_s
        elif server.resident.phase == "stopping":
            del self.servers[key]
        else:
            self.answered += 1
            self.change(key, active=server.resident.active - 1)
            server.idle_since_s = self.now_s
        return True

    def run(self) -> Wait:
        """Do what the scheduler says until it says that there is nothing."""
        for _ in range(MAX_STEPS):
            state = self.state()
            step = next_step(state)
            if not state.queues:  # then the manager does not even look how much memory there is
                assert step == next_step(replace(state, free={}, total={}))
            if isinstance(step, Wait):
                return step
            self.do(step)
        raise AssertionError(f"it does not settle: {step}")

    def do(self, step: Serve | Start | Stop | Drain | Resume | Refuse) -> None:
        one = self.servers[step.serial].resident if isinstance(step, Serve | Stop | Drain | Resume) else None
        if isinstance(step, Serve):
            assert one is not None
            assert (one.phase, one.is_draining, one.alias) == ("ready", False, step.alias)
            assert one.active < one.slots
            self.waiting[step.alias].pop(0)
            self.change(step.serial, active=one.active + 1)
        elif isinstance(step, Start):
            self.start(step)
        elif isinstance(step, Refuse):
            self.must_be_impossible(step)
            self.refused += len(self.waiting.pop(step.alias))
        else:
            assert one is not None
            assert one.phase == "ready"
            assert one.alias not in self.pinned or isinstance(step, Resume)
            self.unload(step, one)

    def unload(self, step: Stop | Drain | Resume, one: ResidentRunner) -> None:
        if isinstance(step, Stop):
            assert not one.active, "a running answer was cut off"
            self.change(step.serial, phase="stopping")
        else:
            assert one.is_draining == isinstance(step, Resume)
            self.change(step.serial, is_draining=isinstance(step, Drain))
        if not isinstance(step, Resume) and step.alias:
            assert self.evicts[step.alias]
            self.reserved.add(step.alias)
            self.evicted_s[one.alias] = self.now_s

    def start(self, step: Start) -> None:
        facts = self.facts[step.alias]
        key = max(self.servers, default=0) + 1
        size = -(-facts.need_bytes // len(step.devices))
        memory = dict.fromkeys(step.devices, size)
        if len(step.devices) > 1:  # llama-server splits by what is free
            left = facts.need_bytes
            memory = {}
            for device in step.devices:
                memory[device] = min(left, self.free()[device] - MARGIN)
                left -= memory[device]
        self.servers[key] = Server(
            ResidentRunner(
                key, step.alias, "loading", self.rng.choice([1, 1, 2, 4]), memory=memory, load_s=facts.load_s
            )
        )
        self.reserved.discard(step.alias)
        assert all((device >= 0) == facts.on_gpu for device in step.devices)
        assert all(self.free()[device] >= MARGIN for device in step.devices), "more memory than there is"
        assert len({server.resident.alias for server in self.servers.values()}) <= self.rules.max_models, (
            "more models than places"
        )
        beside = {server.resident.alias for server in self.servers.values()}
        assert beside.isdisjoint(self.conflicts.get(step.alias, ())), "loaded together"
        assert (
            sum(
                server.resident.alias == step.alias
                for server in self.servers.values()
                if server.resident.phase != "stopping"
            )
            <= facts.replicas
        )

    def must_be_impossible(self, step: Refuse) -> None:
        facts = self.facts[step.alias]
        if step.why == "failed":
            assert facts.is_failed
            return
        pinned = [server.resident for server in self.servers.values() if server.resident.alias in self.pinned]
        if step.why == "pinned":
            assert len({one.alias for one in pinned}) >= self.rules.max_models
            return
        if step.why == "group":
            assert {one.alias for one in pinned} & self.conflicts[step.alias]
            return
        rooms = [
            size - self.foreign[device] - sum(one.memory.get(device, 0) for one in pinned)
            for device, size in self.total.items()
            if (device >= 0) == facts.on_gpu
        ]
        assert step.available_bytes < step.need_bytes
        assert max(rooms) < facts.need_bytes + MARGIN
        one_could = facts.need_bytes + MARGIN <= max(
            size for device, size in self.total.items() if (device >= 0) == facts.on_gpu
        )
        assert one_could or sum(max(0, size - MARGIN) for size in rooms) < facts.need_bytes


def nobody_waits_for_nothing(manager: RandomManager, wait: Wait) -> None:
    """Say that whoever waits has something to wait for: work that ends, or a time that comes."""
    waiting = [alias for alias, since in manager.waiting.items() if since and manager.evicts[alias]]
    works = any(
        server.resident.phase != "ready" or server.resident.active for server in manager.servers.values()
    )
    assert not waiting or works or wait.again_s is not None
    assert set(wait.reasons) == {alias for alias, since in manager.waiting.items() if since}
    assert all(wait.reasons.values())


@pytest.mark.parametrize("first", range(0, 400, 100))
def test_rules_always_hold_and_every_request_is_served(first: int) -> None:
    for number in range(first, first + 100):
        manager = RandomManager(random.Random(number))
        for _ in range(EVENTS):
            if manager.rng.random() < 0.6:
                manager.ask(manager.rng.choice(list(manager.facts)))
            elif not manager.happens():
                manager.now_s += manager.rng.choice([0.1, 1.0, 30.0])
            nobody_waits_for_nothing(manager, manager.run())
        for _ in range(MAX_EVENTS):
            wait = manager.run()
            nobody_waits_for_nothing(manager, wait)
            if not manager.happens():
                if wait.again_s is None:
                    break
                manager.now_s += max(0.005, wait.again_s)
        left = sum(len(since) for alias, since in manager.waiting.items() if manager.evicts[alias])
        assert left == 0, f"seed {number}: {manager.waiting}"
        assert manager.answered + manager.refused + sum(map(len, manager.waiting.values())) == manager.arrived


def test_time_alone_changes_decisions_only_so_often() -> None:
    """While nothing ends and nobody comes, the manager is woken a few times for each line and server.

    And then no more.
    """
    for number in range(200):
        manager = RandomManager(random.Random(number))
        for _ in range(20):
            manager.ask(manager.rng.choice(list(manager.facts)))
            manager.run()
            manager.happens()
        wait, woken = manager.run(), 0
        while wait.again_s is not None:
            assert wait.again_s > 0
            manager.now_s += max(0.005, wait.again_s)
            wait, woken = manager.run(), woken + 1
            assert woken <= 3 * (len(manager.facts) + len(manager.servers)), f"seed {number}"
