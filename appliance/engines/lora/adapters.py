"""LoRA adapters as they are wanted: declared once, kept in a file, and brought to every backend of their base model, again after an engine
was restarted and on backends that come later.

    load, unload   an operator's change: done on every backend that is up, or on none
    _round         whatever differs from what is declared is told to the backends, until nothing differs (decisions: lora_plan.py)

How engines are told: lora_hosts.py and the dialects; what may be served meanwhile: lora_held.py; downloads before a load: lora_orders.py.
"""

import asyncio
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from appliance.base.clock import Clock
from appliance.base.errors import ApplianceError, Conflict, Internal, NotFound, Unavailable
from appliance.base.logs import get_logger
from appliance.base.metrics.registry import Metrics
from appliance.base.tasks import Tasks
from appliance.base.wire.types import WireError
from appliance.engines.backends.managed import MANAGED_BACKEND
from appliance.engines.dialects.contract import LoraReply
from appliance.engines.lora import file as lora_file
from appliance.engines.lora.hosts import AdapterHost, managed_file, refusal, unreached
from appliance.engines.lora.plan import (
    Adapter,
    Failure,
    PlanStep,
    concerned,
    fits,
    has_left,
    names_for,
    next_steps,
)
from appliance.engines.lora.readings import AdapterRow, AdapterStatusView
from appliance.engines.router import Router
from appliance.models.manager.manager import ModelManager
from appliance.models.table.catalogue import LoraAdapter

log = get_logger("lora")


@dataclass(frozen=True, slots=True)
class AdapterChange:
    """What a change came to: the engines' own answers by backend, and what failed where a part of it was enough."""

    row: AdapterRow
    said: dict[str, LoraReply]
    failed: dict[str, ApplianceError]


class AdapterReconciler(AdapterStatusView):
    """One per appliance. Build it inside the event loop, then `start`.

    Takes   path: the file that they are kept in, None = only until the end
    """

    def __init__(
        self,
        router: Router,
        *,
        tasks: Tasks,
        clock: Clock,
        metrics: Metrics,
        path: Path | None = None,
    ) -> None:
        super().__init__(router, tasks=tasks, clock=clock, metrics=metrics, path=path)
        self._changing: dict[str, Adapter] = {}  # by an operator's word, at this moment

    def start(self) -> None:
        """Begin to bring the backends to what is declared."""
        self._tasks.start(self._run(), name="lora-adapters")

    def prepare(self, manager: ModelManager) -> None:
        """Let the models that the appliance runs itself come up with their adapters, before any of them is started (reads headers)."""
        for alias in manager.model_states:
            found = []
            for adapter in self.declared.values():
                if (
                    adapter.is_wanted
                    and adapter.base_model == alias
                    and adapter.backend in {"", MANAGED_BACKEND}
                ):
                    try:
                        found.append(LoraAdapter(managed_file(manager, adapter), 0.0, adapter.name))
                    except ApplianceError as error:  # its model comes up without it, and the list says why
                        log.error("adapter_not_there", adapter=adapter.name, model=alias, why=error.message)
            manager.set_adapters(alias, tuple(found))

    # ---- an operator's changes

    async def load(self, adapter: Adapter, *, partial: bool = False) -> AdapterChange:
        """Declare an adapter and load it on every backend that is up; where one refuses, those that loaded it unload it again.

        Takes   partial: one backend that has it is enough; the others are tried again in the background
        Raises  Conflict: the name is taken, or being changed · Unavailable: no backend is up · what an engine's answer means
        """
        return await self._whole(adapter, self._load(adapter, partial))

    async def unload(
        self, name: str, *, partial: bool = False, more: dict[str, Any] | None = None
    ) -> AdapterChange:
        """Let an adapter go, declared or not, on every backend; one that is down is told when it comes back.

        Takes   partial: what cannot be unloaded at some is tried again in the background, and the adapter counts as gone;
                more: further fields that the caller had for the engine
        Raises  NotFound: nobody has it · Conflict: it is being changed · what an engine's answer means; then it stays as it was
        """
        adapter = self.declared.get(name) or self._foreign(name)
        return await self._whole(adapter, self._unload(adapter, partial, more or {}))

    def not_there(self, adapter: Adapter) -> AdapterChange:
        """Give what an unload comes to when no backend has the adapter."""
        return AdapterChange(self._row(replace(adapter, is_wanted=False)), {}, {})

    def has_host(self, adapter: Adapter) -> bool:
        """Whether a backend is up that is to have the adapter."""
        return any(view.is_up and fits(adapter, view) for view in self.views())

    async def until_host(self, adapter: Adapter) -> None:
        """Wait until there is one."""
        while True:
            seen = self._router.changed.version
            if self.has_host(adapter):
                return
            await self._router.changed.newer(seen)

    async def _whole(self, adapter: Adapter, work: Coroutine[Any, Any, AdapterChange]) -> AdapterChange:
        """Do a change to its end, also when its caller leaves in the middle."""
        if adapter.name in self._changing:
            work.close()
            raise Conflict(
                f"The adapter {adapter.name!r} is just being loaded or unloaded; try again when that is over.",
                code="adapter_busy",
            )
        self._changing[adapter.name] = adapter
        task: asyncio.Task[AdapterChange | ApplianceError] = self._tasks.start(
            self._outcome(adapter, work), name=f"lora-{adapter.name}"
        )
        outcome = await asyncio.shield(task)
        if isinstance(outcome, ApplianceError):
            raise outcome
        return outcome

    async def _outcome(
        self, adapter: Adapter, work: Coroutine[Any, Any, AdapterChange]
    ) -> AdapterChange | ApplianceError:
        try:
            return await work
        except ApplianceError as error:
            return error
        except Exception as error:  # a fault of ours: the caller is told, and nobody else suffers
            log.exception("adapter_change_broke", adapter=adapter.name, error=repr(error))
            return Internal(f"The adapter {adapter.name!r} could not be changed: an internal error.")
        finally:
            del self._changing[adapter.name]
            self._settle()

    async def _load(self, adapter: Adapter, partial: bool) -> AdapterChange:
        former = self._must_be_free(adapter)
        hosts = [host for host in self.hosts().values() if fits(adapter, host.view())]
        up = [host for host in hosts if host.view().is_up]
        if not up:
            raise Unavailable(
                f"No backend of the model {adapter.base_model!r} is up: the adapter {adapter.name!r} is not loaded.",
                code="no_backend",
                retry_after_s=2,
            )
        self._gate()
        fresh = [host for host in up if adapter.name not in host.adapters.loaded]
        said, failed = await self._told("load", adapter, fresh)
        if failed and not (partial and (said or len(fresh) < len(up))):
            await self._roll_back(
                adapter,
                [host for host in fresh if host.name in said and said[host.name].outcome == "done"],
                is_new=former is None,
            )
            raise next(iter(failed.values()))
        self.declared[adapter.name] = adapter
        for host in fresh:
            if host.name in said:
                self._has(host, adapter, said[host.name])
            else:
                self._failed(adapter, host.name, failed[host.name])
        await self._keep()
        log.info(
            "adapter_loaded",
            adapter=adapter.name,
            base_model=adapter.base_model,
            backends=list(said),
            failed=list(failed),
        )
        return AdapterChange(self._row(adapter), said, failed)

    def _must_be_free(self, adapter: Adapter) -> Adapter | None:
        """Give the same adapter where it is declared already. Raises Conflict: the name means something else."""
        former = self.declared.get(adapter.name)
        if former is not None and former.is_wanted:
            if (former.path, former.base_model, former.backend) != (
                adapter.path,
                adapter.base_model,
                adapter.backend,
            ):
                raise Conflict(
                    f"There is an adapter {adapter.name!r} already, for {former.base_model!r} from {former.path}; unload it first.",
                    code="adapter_exists",
                )
            return former
        for view in self.views():
            own = view.listed.get(adapter.name)
            if fits(adapter, view) and own and own != adapter.path and view.kind != "llamacpp":
                raise Conflict(
                    f"The backend {view.backend} has an adapter {adapter.name!r} already, from {own}; unload it first.",
                    code="adapter_exists",
                )
        taken = next(
            (
                card
                for card in self._router.cards()
                if adapter.name in {card.id, *card.aliases} and not card.parent
            ),
            None,
        )
        if taken is not None:
            raise Conflict(
                f"{adapter.name!r} is the name of a model here; give the adapter another one.",
                param="lora_name",
                code="adapter_exists",
            )
        return None

    async def _roll_back(self, adapter: Adapter, hosts: list[AdapterHost], *, is_new: bool) -> None:
        """Unload what a failed change has loaded; who cannot be told is told later."""
        _, failed = await self._told("unload", adapter, hosts)
        log.warning(
            "adapter_rolled_back",
            adapter=adapter.name,
            backends=[host.name for host in hosts],
            failed=list(failed),
        )
        if failed and is_new:
            self.declared[adapter.name] = replace(adapter, is_wanted=False, leaves=tuple(failed))
            await self._keep()

    async def _unload(self, adapter: Adapter, partial: bool, more: dict[str, Any]) -> AdapterChange:
        is_declared = adapter.name in self.declared
        views = {
            view.backend: view for view in (concerned(adapter, self.views()) if is_declared else self.views())
        }
        hosts = [host for name, host in self.hosts().items() if name in views]
        down = [host.name for host in hosts if not views[host.name].is_up] if is_declared else []
        told = [
            host
            for host in hosts
            if views[host.name].is_up and (is_declared or adapter.name in views[host.name].listed)
        ]
        if not is_declared and not told:  # in the engines' own words
            told = [host for host in hosts if views[host.name].is_up and views[host.name].loads]
        had = {host.name: host.adapters.loaded.get(adapter.name) for host in told}
        said, failed = await self._told("unload", adapter, told, more)
        if not is_declared and not any(one.outcome == "done" for one in said.values()):
            raise (
                next(iter(failed.values()), None)
                or next((refusal(one, name, adapter.name) for name, one in said.items()), None)
                or _unknown(adapter.name)
            )
        if failed and not partial:
            await self._put_back(adapter, [host for host in told if had[host.name] is not None])
            raise next(iter(failed.values()))
        if is_declared:
            leaves = (*down, *failed)
            self.declared.pop(adapter.name)
            if leaves:
                self.declared[adapter.name] = replace(adapter, is_wanted=False, leaves=leaves)
            await self._keep()
        log.info("adapter_unloaded", adapter=adapter.name, backends=list(said), later=[*down, *failed])
        return AdapterChange(
            self._row(replace(adapter, is_wanted=False, leaves=(*down, *failed))), said, failed
        )

    async def _put_back(self, adapter: Adapter, hosts: list[AdapterHost]) -> None:
        """Load again what a failed change has unloaded; what fails of that, too, is done in the background: it is still declared."""
        said, _ = await self._told(
            "load", adapter, [host for host in hosts if adapter.name not in host.adapters.loaded]
        )
        for host in hosts:
            if host.name in said:
                self._has(host, adapter, said[host.name])
        log.warning("adapter_put_back", adapter=adapter.name, backends=list(said))

    def _foreign(self, name: str) -> Adapter:
        """Give an adapter that some engine may have without our word for it."""
        listed = next((view for view in self.views() if name in view.listed), None)
        return Adapter(
            name,
            listed.listed[name] if listed else "",
            next(iter(sorted(listed.bases)), "") if listed else "",
        )

    # ---- telling the backends

    async def _told(
        self, verb: str, adapter: Adapter, hosts: Sequence[AdapterHost], more: dict[str, Any] | None = None
    ) -> tuple[dict[str, LoraReply], dict[str, ApplianceError]]:
        """Tell several at the same time; give (what those said that did it, why the others did not)."""
        outcomes = await asyncio.gather(
            *(self._tell(verb, adapter, host, more or {}, is_tried=True) for host in hosts)
        )
        by_name = dict(zip((host.name for host in hosts), outcomes, strict=True))
        return (
            {name: one for name, one in by_name.items() if isinstance(one, LoraReply)},
            {name: one for name, one in by_name.items() if isinstance(one, ApplianceError)},
        )

    async def _tell(
        self,
        verb: str,
        adapter: Adapter,
        host: AdapterHost,
        more: dict[str, Any],
        *,
        is_tried: bool,
    ) -> LoraReply | ApplianceError:
        key = (adapter.name, host.name)
        self._busy.add(key)
        try:
            async with host.lock:
                said = await (
                    host.load(adapter, is_tried=is_tried) if verb == "load" else host.unload(adapter, more)
                )
        except (ApplianceError, WireError, ValueError) as error:
            return unreached(error, host.name)
        finally:
            self._busy.discard(key)
        return (
            said
            if (said.is_loaded if verb == "load" else said.is_unloaded)
            else refusal(said, host.name, adapter.name)
        )

    def _has(self, host: AdapterHost, adapter: Adapter, said: LoraReply) -> None:
        self._failures.pop((adapter.name, host.name), None)
        try:
            host.adapters.add(adapter.name, host.own(adapter, said))
        except ValueError as error:  # it said that it has it, and lists it not
            self._failed(adapter, host.name, unreached(error, host.name))

    def _failed(self, adapter: Adapter, backend: str, error: ApplianceError) -> None:
        former = self._failures.get((adapter.name, backend))
        self._failures[adapter.name, backend] = Failure(
            former.count + 1 if former else 1, self._clock.monotonic_s(), error.message
        )

    # ---- in the background

    async def _run(self) -> None:
        """Go round whenever something changed at the backends, and when a failure's rest is over."""
        while True:
            seen = self._router.changed.version
            try:
                again_s = self._round()
            except Exception as error:
                log.exception("adapter_round_failed", error=repr(error))
                again_s = 5.0
            try:
                async with asyncio.timeout(again_s):  # not wait_for: it can swallow its cancellation (3.11)
                    await self._router.changed.newer(seen)
            except TimeoutError:
                pass

    def _round(self) -> float | None:
        """Begin what must be done; give after how many seconds there may be more."""
        self._gate()
        hosts = self.hosts()
        at_it = self._busy | {(name, backend) for name in self._changing for backend in hosts}
        steps, again_s = next_steps(
            self.declared.values(),
            [host.view() for host in hosts.values()],
            self._failures,
            self._clock.monotonic_s(),
            busy=at_it,
        )
        for step in steps:
            self._busy.add((step.adapter.name, step.backend))
            self._tasks.start(self._do(step, hosts[step.backend]), name=f"lora-{step.verb}")
        return again_s

    async def _do(self, step: PlanStep, host: AdapterHost) -> None:
        """Take one step; whatever it comes to, somebody looks again after it."""
        try:
            await self._take(step, host)
        except Exception as error:
            log.exception(
                "adapter_step_broke", adapter=step.adapter.name, backend=host.name, error=repr(error)
            )
            self._failed(step.adapter, host.name, Internal("an internal error"))
        self._settle()

    async def _take(self, step: PlanStep, host: AdapterHost) -> None:
        adapter = step.adapter
        said = await self._tell(step.verb, adapter, host, {}, is_tried=False)
        is_current = self.declared.get(adapter.name) == adapter and self._hosts.get(host.name) is host
        if isinstance(said, ApplianceError):
            self._failed(adapter, host.name, said)
            log.warning(
                "adapter_step_failed",
                verb=step.verb,
                adapter=adapter.name,
                backend=host.name,
                why=said.message,
            )
        elif step.verb == "load" and is_current and host.view().is_up:
            self._has(host, adapter, said)
            log.info(
                "adapter_loaded",
                adapter=adapter.name,
                base_model=adapter.base_model,
                backends=[host.name],
                failed=[],
            )
        elif step.verb == "unload":
            await self._is_rid(adapter, host.name)

    async def _is_rid(self, adapter: Adapter, backend: str) -> None:
        self._failures.pop((adapter.name, backend), None)
        if self.declared.get(adapter.name) != adapter:
            return
        rest = has_left(adapter, backend, self.hosts())
        if rest == adapter:
            return
        if rest is None:
            del self.declared[adapter.name]
        else:
            self.declared[adapter.name] = rest
        try:
            await self._keep()
        except Conflict as error:
            log.error("adapters_not_kept", why=error.message)

    def _gate(self) -> None:
        """Keep every declared name from those that have not its adapter."""
        known = [
            *self.declared.values(),
            *(adapter for name, adapter in self._changing.items() if name not in self.declared),
        ]
        for host in self.hosts().values():
            if host.adapters.declare(names_for(host.view(), known)):
                host.settle()

    def _settle(self) -> None:
        """Something of ours changed: what is served, and who waits for it."""
        self._gate()
        for host in self._hosts.values():
            host.settle()
        self._router.notify_changed()

    async def _keep(self) -> None:
        if self._path is None:
            return
        await asyncio.to_thread(lora_file.write, self._path, dict(self.declared))


def _unknown(name: str) -> NotFound:
    return NotFound(f"There is no adapter {name[:200]!r} here.", code="no_such_adapter")
