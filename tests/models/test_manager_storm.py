"""The invariants of the manager hold for random events in random order.

Hundreds of random events, each run known by its seed.
"""

import asyncio
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec, TypeVar

import pytest

from appliance.base.errors import ApplianceError
from appliance.models.manager.waiters import Lease, SlotWaiter
from appliance.models.runner.runner import Runner
from appliance.models.table.catalogue import Catalogue
from tests.models.manager_harness import Make, ManagerHarness, model, settle

pytestmark = pytest.mark.timeout(60)
PLACES, STEPS = 2, 400
ALIASES = ("a", "b", "c", "d")
P, T = ParamSpec("P"), TypeVar("T")


class Threads:
    """The work of threads takes a number of loop iterations chosen by the seed, so that a run can be repeated."""

    def __init__(self, seed: int) -> None:
        self.chance, self.at_work = random.Random(seed), 0

    async def to_thread(self, work: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        self.at_work += 1
        try:
            await settle(self.chance.choice((0, 1, 3, 10, 40, 200)))
            result = work(*args, **kwargs)
            await settle(self.chance.choice((0, 1, 3, 10, 40)))
            return result
        finally:
            self.at_work -= 1


class Storm:
    """Random events, and the requests and leases that are open."""

    def __init__(self, harness: ManagerHarness, seed: int, folder: Path, threads: Threads) -> None:
        self.harness, self.chance, self.folder, self.threads = harness, random.Random(seed), folder, threads
        self.tasks: list[asyncio.Task[Lease]] = []
        self.others: list[asyncio.Task[object]] = []
        self.leases: list[Lease] = []  # granted and not released
        self.forced: set[int] = set()
        self.granted = self.failed = self.cancelled = 0
        self.events = {
            self.ask: 30,
            self.give_back: 25,
            self.leave: 8,
            self.load: 3,
            self.load_ends: 25,
            self.load_fails: 3,
            self.crash: 2,
            self.eject: 2,
            self.eject_by_force: 1,
            self.pin: 2,
            self.set_keep_alive: 2,
            self.time_goes_by: 12,
            self.reset: 3,
            self.change: 1,
        }

    async def step(self) -> None:
        event = self.chance.choices(list(self.events), list(self.events.values()))[0]
        event()
        turns = self.chance.choice((0, 1, 2, 5, 30))
        was_at_work = self.threads.at_work
        await settle(turns)
        self.collect()
        self.check(is_settled=turns == 30 and not was_at_work and not self.threads.at_work)

    def alias(self) -> str:
        return self.chance.choices(ALIASES, (8, 4, 2, 1))[0]

    def runners(self) -> list[Runner]:
        return self.harness.manager.runners()

    # ---- events

    def ask(self) -> None:
        self.tasks.append(
            self.harness.ask(
                self.alias(),
                flow=self.chance.choice("xyz"),
                priority=self.chance.choice((0, 1, 1, 1, 2)),
                keep_alive_s=self.chance.choice((None, None, None, 0.0, 20.0, -1.0)),
            )
        )

    def give_back(self) -> None:
        for _ in range(self.chance.choice((1, 1, 1, 3))):
            if self.leases:
                self.leases.pop(self.chance.randrange(len(self.leases))).release(
                    is_ok=self.chance.random() < 0.9
                )

    def leave(self) -> None:
        """Often right after a slot was released, while it is granted to the next request."""
        if self.chance.random() < 0.5:
            self.give_back()
        if self.tasks:
            self.chance.choice(self.tasks).cancel()

    def load(self) -> None:
        self.others.append(self.harness.load(self.alias()))

    def pending(self) -> list[str]:
        return [runner.alias for runner, future in self.harness.loader.loading.values() if not future.done()]

    def load_ends(self) -> None:
        if pending := self.pending():
            self.harness.loader.ready(self.chance.choice(pending))

    def load_fails(self) -> None:
        if pending := self.pending():
            self.harness.loader.fail(
                self.chance.choice(pending), "no luck", can_retry=self.chance.random() < 0.8
            )

    def crash(self) -> None:
        running = [
            runner
            for runner in self.harness.loader.running.values()
            if runner.process is not None and not runner.process.exited.is_set()
        ]
        if running:
            self.harness.loader.crash(self.chance.choice(running).alias)

    def eject(self) -> None:
        self.others.append(asyncio.create_task(self.harness.manager.eject(self.alias())))

    def eject_by_force(self) -> None:
        alias = self.alias()
        self.forced |= {runner.serial for runner in self.runners() if runner.alias == alias}
        self.others.append(asyncio.create_task(self.harness.manager.eject(alias, force=True)))

    def pin(self) -> None:
        alias = self.alias()
        others = sum(
            model_state.is_pinned
            for model_state in self.harness.manager.model_states.values()
            if model_state.alias != alias
        )
        self.harness.manager.pin(alias, pinned=others == 0 and self.chance.random() < 0.5)

    def set_keep_alive(self) -> None:
        self.harness.manager.set_keep_alive(self.alias(), self.chance.choice((0.0, 5.0, -1.0)))

    def time_goes_by(self) -> None:
        self.harness.clock.advance(self.chance.choice((0.01, 0.1, 1.0, 10.0, 60.0, 400.0)))
        self.harness.manager.reschedule()

    def reset(self) -> None:
        self.harness.manager.reset(self.alias())

    def change(self) -> None:
        """Another table: a model changes."""
        models = dict(self.harness.manager.catalogue.models)
        alias = self.alias()
        models[alias] = model(
            alias,
            self.folder,
            n_batch=self.chance.choice((64, 128, 256)),
            replicas=self.chance.choice((1, 2)),
        )
        self.harness.manager.apply(Catalogue(models, self.harness.manager.catalogue.system))

    # ---- what must hold

    def collect(self) -> None:
        for task in [task for task in self.tasks if task.done()]:
            self.tasks.remove(task)
            if task.cancelled():
                self.cancelled += 1
            elif task.exception() is None:
                self.granted += 1
                self.leases.append(task.result())
            else:
                assert isinstance(task.exception(), ApplianceError), task.exception()
                self.failed += 1

    def check(self, *, is_settled: bool = False) -> None:
        manager, loader = self.harness.manager, self.harness.loader
        held = Counter(lease.runner.serial for lease in self.leases)
        for runner in self.runners():
            assert held[runner.serial] <= runner.active <= runner.slots
            assert runner.active == held[runner.serial] or not is_settled, "a slot that nobody has"
            assert runner.idle.is_set() == (runner.active == 0)
        assert len({runner.alias for runner in self.runners()}) <= PLACES
        assert loader.cut_off <= self.forced, "a running request was cut off"
        assert (
            sum(sum(runner.memory_by_device.values()) for runner in loader.running.values())
            <= self.harness.memory.total_bytes
        )
        for model_state in manager.model_states.values():
            assert len(model_state.queue) == sum(
                isinstance(waiter, SlotWaiter) for waiter in model_state.waiters
            )
            assert len(model_state.queue) <= model_state.queue.limit
        assert self.harness.deaths == []

    async def calm(self) -> None:
        """Let everything finish: each request gets a slot or an error."""
        manager = self.harness.manager
        for alias in ALIASES:
            manager.pin(alias, pinned=False)
        for _ in range(400):
            await asyncio.sleep(0.001)
            self.collect()
            self.check()
            if (
                not self.tasks
                and not self.leases
                and all(task.done() for task in self.others)
                and not self.pending()
            ):
                return
            while self.leases:
                self.leases.pop().release(is_ok=True)
            for alias in self.pending():
                self.harness.loader.ready(alias)
            self.harness.clock.advance(5)
            manager.reschedule()
        raise AssertionError(
            f"lost: {len(self.tasks)} asked, {[task for task in self.others if not task.done()]}, {manager.queues()}"
        )


@pytest.mark.parametrize("seed", range(16))
async def test_nothing_is_lost_leaks_or_is_cut_off(
    open_manager: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    threads = Threads(seed)
    monkeypatch.setattr(asyncio, "to_thread", threads.to_thread)
    models = [model(alias, tmp_path, replicas=2 if alias == "b" else 1) for alias in ALIASES]
    harness = await open_manager(
        models=models,
        places=PLACES,
        slots=2,
        memory_mib=1800,
        max_queue_size_per_model=10,
        model_load_max_retries=2,
    )
    storm = Storm(harness, seed, tmp_path, threads)
    for _ in range(STEPS):
        await storm.step()
    await storm.calm()
    assert storm.granted > 30
    assert all(runner.active == 0 for runner in storm.runners())
    assert all(
        not model_state.waiters and not len(model_state.queue)
        for model_state in harness.manager.model_states.values()
    )
    assert len(harness.loader.ports) == len(storm.runners())
    assert {runner.serial for runner in storm.runners()} == set(harness.loader.running)
    for task in storm.others:
        assert task.exception() is None or isinstance(task.exception(), ApplianceError)
