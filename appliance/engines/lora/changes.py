"""An operator's changes: an adapter is loaded or unloaded on every backend that is up, or on none."""

import asyncio
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, replace
from typing import Any

from appliance.base.errors import ApplianceError, Conflict, Internal, NotFound, Unavailable
from appliance.base.logs import get_logger
from appliance.base.tasks import Tasks
from appliance.engines.dialects.contract import LoraReply
from appliance.engines.lora.commands import CommandOutcomes, HostCommands
from appliance.engines.lora.host import AdapterHost
from appliance.engines.lora.hosts import AdapterHosts
from appliance.engines.lora.plan import Adapter, find_involved, is_target
from appliance.engines.lora.replies import refusal_error
from appliance.engines.lora.status_view import AdapterRow, AdapterStatusView
from appliance.engines.lora.table import AdapterTable
from appliance.engines.router import Router

log = get_logger("lora")


@dataclass(frozen=True, slots=True)
class AdapterChange:
    """The result of a change.

    Attributes:
        row: The adapter with its states afterwards.
        replies: The engines' own replies, by backend.
        errors: Why the other backends failed, if a part was enough.
    """

    row: AdapterRow
    replies: dict[str, LoraReply]
    errors: dict[str, ApplianceError]


class AdapterChanges:
    """Carries changes out, one at a time for each adapter; each completes even if its caller leaves."""

    def __init__(
        self,
        router: Router,
        *,
        table: AdapterTable,
        hosts: AdapterHosts,
        commands: HostCommands,
        status: AdapterStatusView,
        tasks: Tasks,
    ) -> None:
        self._router = router
        self._table = table
        self._hosts = hosts
        self._commands = commands
        self._status = status
        self._tasks = tasks

    async def load(self, adapter: Adapter, *, is_partial: bool) -> AdapterChange:
        """See `AdapterManager.load`."""
        return await self._complete(adapter, self._load(adapter, is_partial))

    async def unload(self, name: str, *, is_partial: bool, more: dict[str, Any]) -> AdapterChange:
        """See `AdapterManager.unload`."""
        adapter = self._table.declared.get(name) or self._undeclared(name)
        return await self._complete(adapter, self._unload(adapter, is_partial, more))

    # ---- one change at a time

    async def _complete(self, adapter: Adapter, change: Coroutine[Any, Any, AdapterChange]) -> AdapterChange:
        """Run a change to its end, also if the caller is cancelled."""
        if adapter.name in self._table.changing:
            change.close()
            raise Conflict(
                f"The adapter {adapter.name!r} is being loaded or unloaded; try again when that is done.",
                code="adapter_busy",
            )
        self._table.changing[adapter.name] = adapter
        task: asyncio.Task[AdapterChange | ApplianceError] = self._tasks.start(
            self._outcome(adapter, change), name=f"lora-{adapter.name}"
        )
        outcome = await asyncio.shield(task)
        if isinstance(outcome, ApplianceError):
            raise outcome
        return outcome

    async def _outcome(
        self, adapter: Adapter, change: Coroutine[Any, Any, AdapterChange]
    ) -> AdapterChange | ApplianceError:
        try:
            return await change
        except ApplianceError as error:
            return error
        except Exception as error:  # an unexpected exception must not stop the appliance
            log.exception("adapter_change_crashed", adapter=adapter.name, error=repr(error))
            return Internal(f"The adapter {adapter.name!r} could not be changed: internal error.")
        finally:
            del self._table.changing[adapter.name]
            self._hosts.publish(self._table.all_known())

    # ---- load

    async def _load(self, adapter: Adapter, is_partial: bool) -> AdapterChange:
        """Load an adapter.

        1. the name is taken, or no backend is up      → an error
        2. a backend refuses, and a part is not enough → the others unload it again, and the error
        3. otherwise                                   → it is declared; the reconciler does the others
        """
        is_new = not self._is_declared(adapter)  # 1
        up = [host for host in self._hosts.targets(adapter) if host.view().is_up]
        if not up:
            raise Unavailable(
                f"No backend of the model {adapter.base_model!r} is up; the adapter {adapter.name!r} is not "
                "loaded.",
                code="no_backend",
                retry_after_s=2,
            )
        self._hosts.guard(self._table.all_known())
        lacking = [host for host in up if adapter.name not in host.adapters.loaded]
        outcomes = await self._commands.send_all("load", adapter, lacking)
        has_part = bool(outcomes.replies) or len(lacking) < len(up)
        if outcomes.errors and not (is_partial and has_part):  # 2
            await self._roll_back(adapter, lacking, outcomes, is_new=is_new)
            raise next(iter(outcomes.errors.values()))
        self._table.declared[adapter.name] = adapter  # 3
        self._record(adapter, lacking, outcomes)
        await self._table.save()
        log.info(
            "adapter_loaded",
            adapter=adapter.name,
            base_model=adapter.base_model,
            backends=list(outcomes.replies),
            failed=list(outcomes.errors),
        )
        return AdapterChange(self._status.row(adapter), outcomes.replies, outcomes.errors)

    def _is_declared(self, adapter: Adapter) -> bool:
        """Whether the same adapter is declared already.

        1. the name is declared for another adapter      → Conflict
        2. a target lists another adapter under the name → Conflict
        3. it is the name of a model                     → Conflict
        """
        former = self._table.declared.get(adapter.name)
        if former is not None and former.is_wanted:
            if _identity(former) != _identity(adapter):  # 1
                raise Conflict(
                    f"The adapter {adapter.name!r} exists already, for {former.base_model!r} from "
                    f"{former.path}; unload it first.",
                    code="adapter_exists",
                )
            return True
        for view in self._hosts.views():  # 2; an engine that names adapters itself has paths of its own
            path = view.listed.get(adapter.name)
            if is_target(adapter, view) and path and path != adapter.path and view.names_adapters:
                raise Conflict(
                    f"The backend {view.backend} has an adapter {adapter.name!r} already, from {path}; "
                    "unload it first.",
                    code="adapter_exists",
                )
        cards = (card for card in self._router.cards() if not card.parent)
        if any(adapter.name in {card.id, *card.aliases} for card in cards):  # 3
            raise Conflict(
                f"{adapter.name!r} is the name of a model here; choose another `lora_name`.",
                param="lora_name",
                code="adapter_exists",
            )
        return False

    def _record(self, adapter: Adapter, hosts: Sequence[AdapterHost], outcomes: CommandOutcomes) -> None:
        for host in hosts:
            if host.name in outcomes.replies:
                self._commands.record_loaded(host, adapter, outcomes.replies[host.name])
            else:
                self._table.add_failure(adapter.name, host.name, outcomes.errors[host.name])

    async def _roll_back(
        self, adapter: Adapter, hosts: Sequence[AdapterHost], loaded: CommandOutcomes, *, is_new: bool
    ) -> None:
        """Unload what a failed change has loaded; the reconciler repeats what fails of that."""
        done = {name for name, reply in loaded.replies.items() if reply.outcome == "done"}
        affected = [host for host in hosts if host.name in done]
        failed = (await self._commands.send_all("unload", adapter, affected)).errors
        log.warning(
            "adapter_rolled_back",
            adapter=adapter.name,
            backends=[host.name for host in affected],
            failed=list(failed),
        )
        if failed and is_new:
            self._table.remove(adapter, tuple(failed))
            await self._table.save()

    # ---- unload

    async def _unload(self, adapter: Adapter, is_partial: bool, more: dict[str, Any]) -> AdapterChange:
        """Unload an adapter.

        1. it is declared, and every backend that is up has unloaded it, or a part is enough
           → it is not declared any more; the reconciler unloads it on the others
        2. it is declared, and a backend refuses    → the others load it again, and the error
        3. it is not declared, and no engine had it → an error
        """
        is_declared = adapter.name in self._table.declared
        up, down = self._unload_targets(adapter, is_declared=is_declared)
        had_it = [host for host in up if adapter.name in host.adapters.loaded]
        outcomes = await self._commands.send_all("unload", adapter, up, more)
        if not is_declared and not any(one.outcome == "done" for one in outcomes.replies.values()):  # 3
            raise _not_unloaded(adapter.name, outcomes)
        if outcomes.errors and not is_partial:  # 2
            await self._restore(adapter, had_it)
            raise next(iter(outcomes.errors.values()))
        later = (*down, *outcomes.errors)  # 1
        if is_declared:
            self._table.remove(adapter, later)
            await self._table.save()
        log.info("adapter_unloaded", adapter=adapter.name, backends=list(outcomes.replies), later=list(later))
        row = self._status.row(replace(adapter, is_wanted=False, unload_from=later))
        return AdapterChange(row, outcomes.replies, outcomes.errors)

    def _unload_targets(
        self, adapter: Adapter, *, is_declared: bool
    ) -> tuple[list[AdapterHost], tuple[str, ...]]:
        """Return the backends that get the command now, and the names of those that get it when they are up.

        1. it is declared                        → every backend that is involved
        2. it is not declared, and some list it  → those
        3. it is not declared, and none lists it → all that can load adapters: they reply themselves
        """
        views = {view.backend: view for view in self._hosts.views()}
        hosts = self._hosts.by_name()
        if is_declared:  # 1
            involved = {view.backend for view in find_involved(adapter, list(views.values()))}
            own = [host for name, host in hosts.items() if name in involved]
            down = tuple(host.name for host in own if not views[host.name].is_up)
            return [host for host in own if views[host.name].is_up], down
        up = [host for name, host in hosts.items() if views[name].is_up]
        listing = [host for host in up if adapter.name in views[host.name].listed]
        return listing or [host for host in up if views[host.name].can_load], ()  # 2, 3

    async def _restore(self, adapter: Adapter, hosts: Sequence[AdapterHost]) -> None:
        """Load again what a failed change has unloaded; the reconciler repeats what fails of that."""
        lacking = [host for host in hosts if adapter.name not in host.adapters.loaded]
        replies = (await self._commands.send_all("load", adapter, lacking)).replies
        for host in lacking:
            if host.name in replies:
                self._commands.record_loaded(host, adapter, replies[host.name])
        log.warning("adapter_restored", adapter=adapter.name, backends=list(replies))

    def _undeclared(self, name: str) -> Adapter:
        """Return an adapter that an engine may have without being declared here."""
        view = next((view for view in self._hosts.views() if name in view.listed), None)
        if view is None:
            return Adapter(name, "", "")
        return Adapter(name, view.listed[name], min(view.bases, default=""))


def _identity(adapter: Adapter) -> tuple[str, str, str]:
    return adapter.path, adapter.base_model, adapter.backend


def _not_unloaded(name: str, outcomes: CommandOutcomes) -> ApplianceError:
    """Return the error for an adapter that is not declared and that no engine has unloaded."""
    for error in outcomes.errors.values():
        return error
    for backend, reply in outcomes.replies.items():
        return refusal_error(reply, backend, name)
    return NotFound(f"There is no adapter {name[:200]!r}.", code="no_such_adapter")
