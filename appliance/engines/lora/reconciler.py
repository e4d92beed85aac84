"""The background loop that brings the backends to what is declared.

It decides again when a backend changed, such as an engine that was restarted or added, and when a retry is
due. plan.py decides what to do.
"""

import asyncio

from appliance.base.clock import Clock
from appliance.base.errors import ApplianceError, Conflict, Internal
from appliance.base.logs import get_logger
from appliance.base.tasks import Tasks
from appliance.engines.dialects.contract import LoraReply
from appliance.engines.lora.commands import HostCommands
from appliance.engines.lora.host import AdapterHost
from appliance.engines.lora.hosts import AdapterHosts
from appliance.engines.lora.plan import PlanStep, next_steps
from appliance.engines.lora.table import AdapterTable
from appliance.engines.router import Router

log = get_logger("lora")
CRASH_PAUSE_S = 5.0


class AdapterReconciler:
    """One per appliance; `start` begins the loop."""

    def __init__(
        self,
        router: Router,
        *,
        table: AdapterTable,
        hosts: AdapterHosts,
        commands: HostCommands,
        tasks: Tasks,
        clock: Clock,
    ) -> None:
        self._router = router
        self._table = table
        self._hosts = hosts
        self._commands = commands
        self._tasks = tasks
        self._clock = clock

    def start(self) -> None:
        """Begin to reconcile. Call it inside the event loop."""
        self._tasks.start(self._run(), name="lora-adapters")

    async def _run(self) -> None:
        while True:
            seen = self._router.changed.version
            try:
                retry_s = self.reconcile()
            except Exception as error:
                log.exception("adapter_reconcile_crashed", error=repr(error))
                retry_s = CRASH_PAUSE_S
            try:
                async with asyncio.timeout(retry_s):  # wait_for of Python 3.11 can swallow its cancellation
                    await self._router.changed.newer(seen)
            except TimeoutError:
                pass

    def reconcile(self) -> float | None:
        """Begin the steps that are due; return the seconds until the next retry (None = no retry is due)."""
        self._hosts.guard(self._table.all_known())
        hosts = self._hosts.by_name()
        steps, retry_s = next_steps(
            self._table.declared.values(),
            [host.view() for host in hosts.values()],
            self._table.failures,
            self._clock.monotonic_s(),
            busy=self._table.busy | {(name, backend) for name in self._table.changing for backend in hosts},
        )
        for step in steps:
            self._table.busy.add((step.adapter.name, step.backend))
            self._tasks.start(self._do(step, hosts[step.backend]), name=f"lora-{step.verb}")
        return retry_s

    async def _do(self, step: PlanStep, host: AdapterHost) -> None:
        """Carry a step out, then publish, so that the loop decides again."""
        try:
            await self._take(step, host)
        except Exception as error:
            log.exception(
                "adapter_step_crashed", adapter=step.adapter.name, backend=host.name, error=repr(error)
            )
            self._table.add_failure(step.adapter.name, host.name, Internal("internal error"))
        self._hosts.publish(self._table.all_known())

    async def _take(self, step: PlanStep, host: AdapterHost) -> None:
        """Carry a step out.

        1. it failed                                         → retried later
        2. loaded, still declared, and the backend is there  → the backend may serve it
        3. unloaded                                          → removed once every backend has unloaded it
        """
        adapter = step.adapter
        reply = await self._commands.send(step.verb, adapter, host, {}, is_verified=False)
        if isinstance(reply, ApplianceError):  # 1
            self._table.add_failure(adapter.name, host.name, reply)
            log.warning(
                "adapter_step_failed",
                verb=step.verb,
                adapter=adapter.name,
                backend=host.name,
                reason=reply.message,
            )
        elif step.verb == "load":  # 2
            self._record_loaded(step, host, reply)
        else:  # 3
            await self._record_unloaded(step, host)

    def _record_loaded(self, step: PlanStep, host: AdapterHost, reply: LoraReply) -> None:
        adapter = step.adapter
        is_declared = self._table.declared.get(adapter.name) == adapter
        if is_declared and self._hosts.is_current(host) and host.view().is_up:
            self._commands.record_loaded(host, adapter, reply)
            log.info(
                "adapter_loaded",
                adapter=adapter.name,
                base_model=adapter.base_model,
                backends=[host.name],
                failed=[],
            )

    async def _record_unloaded(self, step: PlanStep, host: AdapterHost) -> None:
        self._table.clear_failures(step.adapter.name, host.name)
        if not self._table.mark_unloaded(step.adapter, host.name, self._hosts.by_name()):
            return
        try:
            await self._table.save()
        except Conflict as error:
            log.error("adapters_not_saved", reason=error.message)
