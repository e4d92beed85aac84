"""The calls about the models that this appliance runs itself; the model manager carries them out."""

import asyncio
from contextlib import aclosing

from google.protobuf.timestamp_pb2 import Timestamp
from grpc.aio import ServicerContext

from appliance.base.errors import ApplianceError, Conflict, Invalid, Unavailable
from appliance.control.calls.group import (
    AnyContext,
    CallGroup,
    parse_interval_s,
    require_in_range,
    require_text,
)
from appliance.control.convert.models import to_device, to_model, to_queue
from appliance.control.convert.values import to_timestamp
from appliance.control.follow import follow_until
from appliance.control.v1 import control_pb2 as pb
from appliance.control.writing import write
from appliance.models.runner.log_reader import MAX_LINES, LogReader, follow_log
from appliance.models.status.views import ModelManagerApi, ModelView

MAX_KEEP_ALIVE_S = 31_536_000.0  # a year; a negative time means for ever


class ModelCalls(CallGroup):
    """ListModels, LoadModel, EjectModel, ResetModel, PinModel, WatchModels.

    TailModelLogs, GetQueue, GetVram.
    """

    async def ListModels(self, request: pb.ListModelsRequest, context: AnyContext) -> pb.ListModelsResponse:
        """Return every model, loaded or not; none where this appliance runs no models itself."""
        manager = self._parts.manager
        return pb.ListModelsResponse(models=_models(manager) if manager is not None else [], at=self._now())

    async def WatchModels(
        self,
        request: pb.WatchModelsRequest,
        context: ServicerContext[pb.WatchModelsRequest, pb.WatchModelsResponse],
    ) -> None:
        """Send every model now and after each change."""
        manager = self._manager()
        changes = follow_until(self._stopping, manager.changed.follow(), every_s=parse_interval_s(request))
        async with aclosing(changes):
            async for _ in changes:
                await write(context, pb.WatchModelsResponse(models=_models(manager), at=self._now()))

    async def LoadModel(
        self,
        request: pb.LoadModelRequest,
        context: ServicerContext[pb.LoadModelRequest, pb.LoadModelResponse],
    ) -> None:
        """Load a model and send its progress. A caller that leaves does not cancel the load."""
        manager, alias = self._manager(), self._require_alias(request.alias)
        keep_alive_s = None
        if request.HasField("keep_alive_s"):
            keep_alive_s = _require_keep_alive_s(request.keep_alive_s)
        over = asyncio.Event()
        load = self._tasks.start(_load(manager, alias, keep_alive_s), name="control-load")
        load.add_done_callback(lambda _: over.set())
        sent: tuple[object, ...] | None = None
        changes = follow_until(self._stopping, follow_until(over, manager.changed.follow()))
        async with aclosing(changes):
            async for _ in changes:
                view = manager.model(alias)
                if _progress(view) != sent:
                    sent = _progress(view)
                    await write(context, pb.LoadModelResponse(model=_model(manager, view)))
        if not load.done():
            raise Unavailable(
                "The appliance is shutting down: the load can no longer be followed.", code="shutting_down"
            )
        outcome = load.result()
        if isinstance(outcome, ApplianceError):
            raise outcome
        if _progress(outcome) != sent:
            await write(context, pb.LoadModelResponse(model=_model(manager, outcome)))

    async def EjectModel(self, request: pb.EjectModelRequest, context: AnyContext) -> pb.EjectModelResponse:
        """Unload a model; a caller that leaves does not interrupt it."""
        manager, alias = self._manager(), self._require_alias(request.alias)
        ejected = await self._run_uninterrupted(manager.eject(alias, force=request.force))
        return pb.EjectModelResponse(
            model=_model(manager, manager.model(alias)),
            was_loaded=ejected.was_loaded,
            waited_for=ejected.waited_for,
        )

    async def ResetModel(self, request: pb.ResetModelRequest, context: AnyContext) -> pb.ResetModelResponse:
        """Forget a model's failures."""
        manager, alias = self._manager(), self._require_alias(request.alias)
        former = manager.reset(alias)
        return pb.ResetModelResponse(
            model=_model(manager, manager.model(alias)),
            had_failures=former is not None,
            attempts=former.attempts if former is not None else 0,
            error=former.error if former is not None else "",
        )

    async def PinModel(self, request: pb.PinModelRequest, context: AnyContext) -> pb.PinModelResponse:
        """Pin a model, or unpin it."""
        manager, alias = self._manager(), self._require_alias(request.alias)
        view = manager.pin(alias, pinned=request.pinned or not request.HasField("pinned"))
        return pb.PinModelResponse(model=_model(manager, view))

    async def TailModelLogs(
        self,
        request: pb.TailModelLogsRequest,
        context: ServicerContext[pb.TailModelLogsRequest, pb.TailModelLogsResponse],
    ) -> None:
        """Send the last lines of a llama-server's log, and with `follow` new ones as they are written."""
        count = int(require_in_range("count", request.count, 0, MAX_LINES))
        port = int(require_in_range("port", request.port, 0, 65_535))
        manager, alias = self._manager(), self._require_alias(request.alias)
        if not request.follow:
            lines = await asyncio.to_thread(LogReader().tail, manager.log_finder(alias, port), count)
            await write(context, pb.TailModelLogsResponse(lines=lines))
            return
        source = follow_log(lambda: manager.log_finder(alias, port), lines=count, is_over=self._stopping)
        async with aclosing(source) as pieces:
            async for new in pieces:
                await write(context, pb.TailModelLogsResponse(lines=new))

    async def GetQueue(self, request: pb.GetQueueRequest, context: AnyContext) -> pb.GetQueueResponse:
        """Return the queue of each model, or of one."""
        manager = self._manager()
        alias = self._require_alias(request.alias) if request.alias else ""
        queues = [to_queue(view) for view in manager.queues() if alias in {"", view.alias}]
        return pb.GetQueueResponse(queues=queues)

    async def GetVram(self, request: pb.GetVramRequest, context: AnyContext) -> pb.GetVramResponse:
        """Return the memory of each device, and the models in it."""
        manager = self._manager()
        models = manager.models()
        return pb.GetVramResponse(devices=[to_device(view, models) for view in manager.devices()])

    def _manager(self) -> ModelManagerApi:
        if self._parts.manager is None:
            raise Conflict(
                "This appliance runs no models itself. Set MODEL_DIR to a folder of .gguf files, or list "
                "`models` in the file of CONFIG_PATH, then restart it.",
                code="no_models",
            )
        return self._parts.manager

    def _require_alias(self, alias: str) -> str:
        """Return the alias of a model of the table.

        Raise Invalid without one, NoSuchModel for an unknown one.
        """
        return self._manager().model(require_text(alias, "alias")).alias

    def _now(self) -> Timestamp | None:
        return to_timestamp(self._parts.clock.now_s())


async def _load(
    manager: ModelManagerApi, alias: str, keep_alive_s: float | None
) -> ModelView | ApplianceError:
    """Return the loaded model, or the error: as a value, because its caller may have left."""
    try:
        return await manager.load(alias, keep_alive_s=keep_alive_s)
    except ApplianceError as error:
        return error


def _models(manager: ModelManagerApi) -> list[pb.Model]:
    waiting = _waiting(manager)
    return [to_model(view, waiting) for view in manager.models()]


def _model(manager: ModelManagerApi, view: ModelView) -> pb.Model:
    return to_model(view, _waiting(manager))


def _waiting(manager: ModelManagerApi) -> dict[str, int]:
    return {queue.alias: queue.queue_length for queue in manager.queues()}


def _progress(view: ModelView) -> tuple[object, ...]:
    """Return the values whose change is sent; in whole seconds, since a countdown is not a change."""
    return (
        view.status,
        view.load_progress,
        None if view.expected_in_s is None else round(view.expected_in_s),
        view.error_message,
    )


def _require_keep_alive_s(value: float) -> float:
    if not value <= MAX_KEEP_ALIVE_S or value == float("-inf"):  # `not <=` refuses NaN as well
        raise Invalid(
            f"`keep_alive_s` must be at most {MAX_KEEP_ALIVE_S:.0f} (a year), or negative for ever, "
            f"not {value:g}.",
            param="keep_alive_s",
            code="out_of_range",
        )
    return value
