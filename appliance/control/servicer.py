"""The calls of `appliance.control.v1.Control`: unpack, call the part that HTTP uses too, pack. Errors are ours; the interceptor
gives them their status codes."""

from contextlib import aclosing
from typing import Any

from appliance.base.errors import Conflict, Invalid, NotFound
from appliance.control.calls import every_s, named, within
from appliance.control.chat import answer_chat
from appliance.control.convert import (
    to_backend,
    to_change,
    to_identity,
    to_line,
    to_problem,
    to_receipt,
    to_setting,
    to_status,
    to_worker,
)
from appliance.control.errors import RolledBack
from appliance.control.follow import followed
from appliance.control.jobs import JobCalls
from appliance.control.lora import LoraCalls
from appliance.control.models import ModelCalls
from appliance.control.parts import ReloadResult, WorkerLike
from appliance.control.v1 import control_pb2 as pb
from appliance.control.writing import write

MOST_LINES = 2000
MOST_RECEIPTS = 1000
DEFAULT_RECEIPTS = 100


class Servicer(ModelCalls, JobCalls, LoraCalls):
    """Every call of the service; those about models are in models.py, about downloads in jobs.py, about adapters in lora.py."""

    # ---- state

    async def GetStatus(self, request: Any, context: Any) -> Any:
        return pb.GetStatusResponse(status=self._status())

    async def WatchStatus(self, request: Any, context: Any) -> None:
        told = None
        async with aclosing(
            followed(self._parts.changed.follow(), stopping=self._stopping, every_s=every_s(request))
        ) as changes:
            async for _ in changes:
                status = self._status()
                told = status.state
                await write(context, pb.WatchStatusResponse(status=status))
        last = self._status()
        if last.state != told:
            await write(context, pb.WatchStatusResponse(status=last))

    async def GetIdentity(self, request: Any, context: Any) -> Any:
        return to_identity(self._parts.identity())

    def _status(self) -> pb.Status:
        return to_status(self._parts.status())

    # ---- settings

    async def GetSettings(self, request: Any, context: Any) -> Any:
        rows = self._parts.settings()
        return pb.GetSettingsResponse(
            settings=[to_setting(row) for row in rows if row.is_set or not request.set_only]
        )

    async def Reload(self, request: Any, context: Any) -> Any:
        result = await self._finished(self._reload(dict(request.overrides), request.dry_run))
        if result.problems and not request.dry_run:
            raise _refusal(result)
        return pb.ReloadResponse(
            applied=result.applied,
            message=result.message,
            changes=[to_change(c) for c in result.changes],
            problems=[to_problem(p) for p in result.problems],
        )

    async def _reload(self, overrides: dict[str, str], dry_run: bool) -> ReloadResult:
        return await self._parts.reload(overrides, dry_run)

    # ---- life

    async def Drain(self, request: Any, context: Any) -> Any:
        self._parts.drain()
        return pb.DrainResponse(status=self._status_that_is("draining"))

    async def Resume(self, request: Any, context: Any) -> Any:
        self._parts.resume()
        return pb.ResumeResponse(status=self._status_that_is("serving"))

    def _status_that_is(self, wanted: str) -> pb.Status:
        status = self._parts.status()
        if status["state"] != wanted:
            raise Conflict(
                f"The appliance is {status['state']}; from there it cannot become {wanted}.",
                code=f"is_{status['state']}",
            )
        return to_status(status)

    async def Shutdown(self, request: Any, context: Any) -> Any:
        grace_s = within("grace_s", request.grace_s, 0, 3600) if request.HasField("grace_s") else None
        self._parts.shutdown(grace_s)  # returns at once; the door closes only after this answer has gone
        return pb.ShutdownResponse()

    # ---- worker

    async def GetWorker(self, request: Any, context: Any) -> Any:
        worker = self._parts.worker
        return pb.GetWorkerResponse(worker=to_worker(worker.as_dict() if worker else {"state": "off"}))

    async def StartWorker(self, request: Any, context: Any) -> Any:
        worker = self._worker()
        await self._finished(worker.start())
        return pb.StartWorkerResponse(worker=_started(worker))

    async def StopWorker(self, request: Any, context: Any) -> Any:
        worker = self._worker()
        await self._finished(worker.stop())
        return pb.StopWorkerResponse(worker=to_worker(worker.as_dict()))

    async def RestartWorker(self, request: Any, context: Any) -> Any:
        worker = self._worker()
        await self._finished(worker.restart())
        return pb.RestartWorkerResponse(worker=_started(worker))

    def _worker(self) -> WorkerLike:
        worker = self._parts.worker
        if worker is None or not worker.as_dict().get("command"):
            raise Conflict(
                "No worker is configured. Set WORKER_COMMAND, or WORKER=kuzco and CODE.", code="no_worker"
            )
        return worker

    # ---- log

    async def TailLogs(self, request: Any, context: Any) -> None:
        count = int(within("count", request.count, 0, MOST_LINES))
        lines = self._parts.lines
        tail = lines.tail(count, source=request.source)
        for line in tail:
            await write(context, to_line(line))
        if not request.follow:
            return
        source = lines.follow(after=tail[-1].number if tail else None, source=request.source)
        async with aclosing(followed(source, stopping=self._stopping)) as more:
            async for new in more:
                if new is not None:
                    await write(context, to_line(new))

    # ---- engines

    async def Chat(self, request: Any, context: Any) -> None:
        await answer_chat(self._parts, request, context)

    async def ListBackends(self, request: Any, context: Any) -> Any:
        return pb.ListBackendsResponse(backends=[to_backend(state) for state in self._parts.router.states()])

    async def WatchBackends(self, request: Any, context: Any) -> None:
        async with aclosing(
            followed(self._parts.router.changed.follow(), stopping=self._stopping, every_s=every_s(request))
        ) as changes:
            async for _ in changes:
                await write(
                    context,
                    pb.WatchBackendsResponse(
                        backends=[to_backend(state) for state in self._parts.router.states()]
                    ),
                )

    async def AddBackend(self, request: Any, context: Any) -> Any:
        value: dict[str, Any] = {"url": request.url, "cost": request.cost, "models": list(request.models)}
        value |= {
            name: getattr(request, name)
            for name in ("name", "kind", "pool", "api_key")
            if getattr(request, name)
        }
        value |= {
            name: getattr(request, name) for name in ("weight", "max_in_flight") if request.HasField(name)
        }
        server = self._parts.fleet.add(value, persist=request.persist)
        return pb.AddBackendResponse(backend=to_backend(server.state()))

    async def RemoveBackend(self, request: Any, context: Any) -> Any:
        self._parts.fleet.remove(named(request.name), persist=request.persist)
        return pb.RemoveBackendResponse()

    async def DrainBackend(self, request: Any, context: Any) -> Any:
        server = self._parts.fleet.drain(named(request.name), resume=request.resume, persist=request.persist)
        return pb.DrainBackendResponse(backend=to_backend(server.state()))

    async def SetStrategy(self, request: Any, context: Any) -> Any:
        self._parts.fleet.set_strategy(request.strategy, pool=request.pool, persist=request.persist)
        return pb.SetStrategyResponse(strategy=self._parts.router.strategy)

    async def GetReceipt(self, request: Any, context: Any) -> Any:
        if not request.id:
            raise Invalid("`id` is required.", param="id", code="missing_required_parameter")
        receipt = self._parts.receipts.get(request.id)
        if receipt is None:
            raise NotFound(f"There is no receipt {request.id[:200]!r}; the last thousand are kept.")
        return pb.GetReceiptResponse(receipt=to_receipt(receipt))

    async def ListReceipts(self, request: Any, context: Any) -> Any:
        count = int(within("count", request.count, 0, MOST_RECEIPTS)) or DEFAULT_RECEIPTS
        return pb.ListReceiptsResponse(
            receipts=[to_receipt(receipt) for receipt in self._parts.receipts.latest(count)]
        )


def _started(worker: WorkerLike) -> pb.Worker:
    """Give the worker after a start; a refusal is an error here, though the worker itself only notes it."""
    state = worker.as_dict()
    if state.get("state") == "refused":
        raise Conflict(str(state.get("reason") or "The worker may not run here."), code="worker_refused")
    return to_worker(state)


def _refusal(result: ReloadResult) -> Invalid | RolledBack:
    """Give the error of a reload that was not applied: problems with changes mean that it was rolled back."""
    said = "; ".join(str(problem) for problem in result.problems)
    violations = [
        (problem.variable, f"allowed: {problem.allowed}. {problem.remedy}") for problem in result.problems
    ]
    if result.changes:
        return RolledBack(f"{result.message} {said}", details={"violations": violations})
    return Invalid(f"{result.message} {said}", code="bad_settings", details={"violations": violations})
