"""Looks at what runs, in the background: how much memory it really takes, whether it is well, and that its log stays within bounds.

A llama-server that five times in a row does not answer for its health is ended and loaded again: it would keep its place for nothing.
"""

import asyncio
from typing import TYPE_CHECKING

from appliance.base.logs import get_logger
from appliance.models.manager.readings import DOWN
from appliance.models.runner.process import memory_bytes
from appliance.models.status.views import RAM

if TYPE_CHECKING:
    from appliance.models.manager.manager import ModelManager
    from appliance.models.manager.state import Runner

log = get_logger("models")
MEASURE_EVERY_S = 5.0
LOOK_EVERY_S = 30.0
LOOK_LIMIT_S = 5.0
RELOAD_AFTER_S = 2.0


class Watchdog:
    """Watches over a manager's llama-servers. `look_every_s`: between two looks at their health."""

    def __init__(self, manager: "ModelManager", *, look_every_s: float = LOOK_EVERY_S) -> None:
        self._manager = manager
        self.look_every_s = look_every_s

    async def measure(self) -> None:
        """Measure what each takes, and teach the next load."""
        manager = self._manager
        before = manager.history.version
        for runner in manager.runners():
            if runner.phase == "ready" and runner.process is not None:
                is_told = await asyncio.to_thread(self._measure_one, runner)
                entry = manager.model_states.get(runner.alias)
                # What is only estimated teaches nothing: each load would believe the one before, and add to it.
                if is_told and entry is not None and runner.phase == "ready":
                    manager.history.took(entry.key, sum(runner.memory.values()))
        if manager.history.version != before:
            await asyncio.to_thread(manager.history.write)

    def _measure_one(self, runner: "Runner") -> bool:
        """Measure one; give whether the driver tells (blocks)."""
        assert runner.process is not None
        memory = self._manager.ram if RAM in runner.devices else self._manager.memory
        taken = memory.of_process(runner.process.pid)
        if taken:
            runner.memory = taken
        if RAM in runner.devices:
            runner.file_bytes = memory_bytes(runner.process.pid)[1]
        runner.process.trim_log()
        return bool(taken)

    async def look(self) -> None:
        """Look at the health of each."""
        await asyncio.gather(
            *(self._look_at(runner) for runner in self._manager.runners() if runner.phase == "ready")
        )

    async def _look_at(self, runner: "Runner") -> None:
        manager = self._manager
        entry = manager.model_states.get(runner.alias)
        if entry is None or runner.process is None:
            return
        clock = manager.clock
        began_s = clock.monotonic_s()
        is_well = await runner.process.answers(LOOK_LIMIT_S)
        if runner.phase != "ready":
            return
        entry.looks.append((is_well, (clock.monotonic_s() - began_s) * 1000))
        entry.looked_at_s = clock.now_s()
        runner.misses = 0 if is_well else runner.misses + 1
        entry.misses = max(one.misses for one in entry.runners) if entry.runners else 0
        if not is_well:
            log.warning("model_unwell", alias=runner.alias, port=runner.port, in_a_row=runner.misses)
        if runner.misses >= DOWN:
            log.error("model_down", alias=runner.alias, port=runner.port, in_a_row=runner.misses)
            await manager.cut_off(runner)  # this one only: its sisters may be well
            await asyncio.sleep(RELOAD_AFTER_S)
            entry.misses = 0
            manager.restore(runner.alias)
