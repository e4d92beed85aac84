"""Watches llama-servers in the background: the memory that they take, their health, the size of their logs.

A llama-server whose health probe fails five times in a row is stopped and loaded again: it would occupy
memory without serving.
"""

import asyncio

from appliance.base.logs import get_logger
from appliance.models.manager.manager import ModelManager
from appliance.models.manager.status_view import DOWN
from appliance.models.runner.proc import memory_bytes
from appliance.models.runner.runner import Runner
from appliance.models.status.views import RAM

log = get_logger("models")
MEASURE_EVERY_S = 5.0
PROBE_TIMEOUT_S = 5.0
RELOAD_AFTER_S = 2.0


class Watchdog:
    """Measures and probes the llama-servers of a manager."""

    def __init__(self, manager: ModelManager) -> None:
        self._manager = manager

    async def measure(self) -> None:
        """Measure the memory of each llama-server, and record it in the load history."""
        manager = self._manager
        version = manager.history.version
        for runner in manager.runners():
            if runner.phase == "ready" and runner.process is not None:
                is_measured = await asyncio.to_thread(self._measure_one, runner)
                # An estimate must not be recorded: each load would add its margin to the one before.
                if is_measured and runner.phase == "ready":
                    manager.history.record_memory(runner.history_key, runner.memory_bytes)
        if manager.history.version != version:
            await asyncio.to_thread(manager.history.write)

    def _measure_one(self, runner: Runner) -> bool:
        """Measure one llama-server (blocks); return whether the driver shows its memory."""
        assert runner.process is not None
        taken = self._manager.device_memory.of(runner).of_process(runner.process.pid)
        if taken:
            runner.memory_by_device = taken
        if RAM in runner.devices:
            runner.file_bytes = memory_bytes(runner.process.pid)[1]
        return bool(taken)

    async def probe(self) -> None:
        """Probe the health of each llama-server that is ready."""
        ready = [runner for runner in self._manager.runners() if runner.phase == "ready"]
        await asyncio.gather(*map(self._probe_one, ready))

    async def _probe_one(self, runner: Runner) -> None:
        manager = self._manager
        model = manager.model_states.get(runner.alias)
        if model is None or runner.process is None:
            return
        started_s = manager.clock.monotonic_s()
        is_healthy = await runner.process.is_healthy(PROBE_TIMEOUT_S)
        if runner.phase != "ready":
            return
        model.probes.append((is_healthy, (manager.clock.monotonic_s() - started_s) * 1000))
        model.probed_at_s = manager.clock.now_s()
        if not is_healthy and runner.active and runner.model.engine is not None:
            return  # many an engine answers nothing else while it computes
        runner.failed_probes = 0 if is_healthy else runner.failed_probes + 1
        model.failed_probes = max((one.failed_probes for one in model.runners), default=0)
        if not is_healthy:
            log.warning(
                "health_probe_failed", alias=runner.alias, port=runner.port, in_a_row=runner.failed_probes
            )
        if runner.failed_probes >= DOWN:
            log.error("model_down", alias=runner.alias, port=runner.port, in_a_row=runner.failed_probes)
            await manager.stop_now(runner)  # this one only: other replicas may be healthy
            await asyncio.sleep(RELOAD_AFTER_S)
            model.failed_probes = 0
            manager.restore(runner.alias)
