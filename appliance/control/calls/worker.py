"""The calls about the worker."""

from appliance.base.errors import Conflict
from appliance.control.calls.group import AnyContext, CallGroup
from appliance.control.convert.status import to_worker
from appliance.control.parts import WorkerLike
from appliance.control.v1 import control_pb2 as pb


class WorkerCalls(CallGroup):
    """GetWorker, StartWorker, StopWorker, RestartWorker. A caller that leaves does not interrupt them."""

    async def GetWorker(self, request: pb.GetWorkerRequest, context: AnyContext) -> pb.GetWorkerResponse:
        """Return the worker's state; `off` where none is configured."""
        worker = self._parts.worker
        return pb.GetWorkerResponse(worker=to_worker(worker.as_dict() if worker else {"state": "off"}))

    async def StartWorker(
        self, request: pb.StartWorkerRequest, context: AnyContext
    ) -> pb.StartWorkerResponse:
        """Start the worker."""
        worker = self._worker()
        await self._run_uninterrupted(worker.start())
        return pb.StartWorkerResponse(worker=_started(worker))

    async def StopWorker(self, request: pb.StopWorkerRequest, context: AnyContext) -> pb.StopWorkerResponse:
        """Stop the worker and wait until it and its children have exited."""
        worker = self._worker()
        await self._run_uninterrupted(worker.stop())
        return pb.StopWorkerResponse(worker=to_worker(worker.as_dict()))

    async def RestartWorker(
        self, request: pb.RestartWorkerRequest, context: AnyContext
    ) -> pb.RestartWorkerResponse:
        """Stop the worker, then start it."""
        worker = self._worker()
        await self._run_uninterrupted(worker.restart())
        return pb.RestartWorkerResponse(worker=_started(worker))

    def _worker(self) -> WorkerLike:
        worker = self._parts.worker
        if worker is None or not worker.as_dict().get("command"):
            raise Conflict(
                "No worker is configured. Set WORKER_COMMAND, or WORKER=kuzco and CODE.", code="no_worker"
            )
        return worker


def _started(worker: WorkerLike) -> pb.Worker:
    """Return the worker after a start.

    Raise Conflict where it may not run here, which the worker only records.
    """
    state = worker.as_dict()
    if state.get("state") == "refused":
        raise Conflict(str(state.get("reason") or "The worker may not run here."), code="worker_refused")
    return to_worker(state)
