"""Looks at what runs, in the background: how much memory it really takes, whether it is well, and that its log stays within bounds.

A llama-server that five times in a row does not answer for its health is ended and loaded again: it would keep its place for nothing.
"""

import asyncio
from typing import TYPE_CHECKING

from appliance.base.logs import get_logger
from appliance.models.process import memory_bytes
from appliance.models.readings import DOWN
from appliance.models.views import RAM

if TYPE_CHECKING:
    from appliance.models.entry import Live
    from appliance.models.manager import Manager

log = get_logger("models")
MEASURE_EVERY_S = 5.0
LOOK_EVERY_S = 30.0
LOOK_LIMIT_S = 5.0
RELOAD_AFTER_S = 2.0


class Watchdog:
    """Watches over a manager's llama-servers. `look_every_s`: between two looks at their health."""

    def __init__(self, manager: "Manager", *, look_every_s: float = LOOK_EVERY_S) -> None:
        self._manager = manager
        self.look_every_s = look_every_s

    async def measure(self) -> None:
        """Measure what each takes, and teach the next load."""
        manager = self._manager
        before = manager.lessons.version
        for live in manager.lives():
            if live.phase == "ready" and live.process is not None:
                is_told = await asyncio.to_thread(self._measure_one, live)
                entry = manager.entries.get(live.alias)
                # What is only estimated teaches nothing: each load would believe the one before, and add to it.
                if is_told and entry is not None and live.phase == "ready":
                    manager.lessons.took(entry.key, sum(live.memory.values()))
        if manager.lessons.version != before:
            await asyncio.to_thread(manager.lessons.write)

    def _measure_one(self, live: "Live") -> bool:
        """Measure one; give whether the driver tells (blocks)."""
        assert live.process is not None
        memory = self._manager.ram if RAM in live.devices else self._manager.memory
        taken = memory.of_process(live.process.pid)
        if taken:
            live.memory = taken
        if RAM in live.devices:
            live.file_bytes = memory_bytes(live.process.pid)[1]
        live.process.trim_log()
        return bool(taken)

    async def look(self) -> None:
        """Look at the health of each."""
        await asyncio.gather(*(self._look_at(live) for live in self._manager.lives() if live.phase == "ready"))

    async def _look_at(self, live: "Live") -> None:
        manager = self._manager
        entry = manager.entries.get(live.alias)
        if entry is None or live.process is None:
            return
        clock = manager.clock
        began_s = clock.monotonic_s()
        is_well = await live.process.answers(LOOK_LIMIT_S)
        if live.phase != "ready":
            return
        entry.looks.append((is_well, (clock.monotonic_s() - began_s) * 1000))
        entry.looked_at_s = clock.now_s()
        live.misses = 0 if is_well else live.misses + 1
        entry.misses = max(one.misses for one in entry.lives) if entry.lives else 0
        if not is_well:
            log.warning("model_unwell", alias=live.alias, port=live.port, in_a_row=live.misses)
        if live.misses >= DOWN:
            log.error("model_down", alias=live.alias, port=live.port, in_a_row=live.misses)
            await manager.cut_off(live)         # this one only: its sisters may be well
            await asyncio.sleep(RELOAD_AFTER_S)
            entry.misses = 0
            manager.restore(live.alias)
