"""The calls about the models that this appliance runs itself. All they do is ask the manager's Board; it decides."""

import asyncio
from contextlib import aclosing
from typing import Any

from appliance.base.errors import ApplianceError, Conflict, Invalid, Unavailable
from appliance.control.calls import CallGroup, every_s, named
from appliance.control.convert import to_timestamp
from appliance.control.convert_models import to_device, to_model, to_queue
from appliance.control.follow import followed
from appliance.control.v1 import control_pb2 as pb
from appliance.control.writing import write
from appliance.models.status.views import ModelManagerApi, ModelView

LONGEST_STAY_S = 31_536_000.0  # a year; who wants more wants for ever


class ModelCalls(CallGroup):
    """ListModels, LoadModel, EjectModel, ResetModel, PinModel, WatchModels, GetQueue, GetVram."""

    async def ListModels(self, request: Any, context: Any) -> Any:
        manager = self._parts.manager
        return pb.ListModelsResponse(models=_told(manager) if manager is not None else [], at=self._now())

    async def WatchModels(self, request: Any, context: Any) -> None:
        manager, again_s = self._manager(), every_s(request)
        async with aclosing(
            followed(manager.changed.follow(), stopping=self._stopping, every_s=again_s)
        ) as changes:
            async for _ in changes:
                await write(context, pb.WatchModelsResponse(models=_told(manager), at=self._now()))

    async def LoadModel(self, request: Any, context: Any) -> None:
        manager, alias = self._manager(), self._known(request.alias)
        stay_s = _stay_s(request.keep_alive_s) if request.HasField("keep_alive_s") else None
        over = asyncio.Event()
        load = self._tasks.start(
            _loaded(manager, alias, stay_s), name="control-load"
        )  # goes on when the caller leaves
        load.add_done_callback(lambda _: over.set())
        told: Any = None
        async with aclosing(
            followed(followed(manager.changed.follow(), stopping=over), stopping=self._stopping)
        ) as changes:
            async for _ in changes:
                view = manager.model(alias)
                if _progress(view) != told:
                    told = _progress(view)
                    await write(context, pb.LoadModelResponse(model=_one(manager, view)))
        if not load.done():
            raise Unavailable(
                "The appliance stops; the load cannot be followed any longer.", code="shutting_down"
            )
        outcome = load.result()
        if isinstance(outcome, ApplianceError):
            raise outcome
        if _progress(outcome) != told:
            await write(context, pb.LoadModelResponse(model=_one(manager, outcome)))

    async def EjectModel(self, request: Any, context: Any) -> Any:
        manager, alias = self._manager(), self._known(request.alias)
        ejected = await self._finished(manager.eject(alias, force=request.force))
        return pb.EjectModelResponse(
            model=_one(manager, manager.model(alias)),
            was_loaded=ejected.was_loaded,
            waited_for=ejected.waited_for,
        )

    async def ResetModel(self, request: Any, context: Any) -> Any:
        manager, alias = self._manager(), self._known(request.alias)
        former = manager.reset(alias)
        return pb.ResetModelResponse(
            model=_one(manager, manager.model(alias)),
            had_failures=former is not None,
            attempts=former.attempts if former is not None else 0,
            error=former.error if former is not None else "",
        )

    async def PinModel(self, request: Any, context: Any) -> Any:
        manager, alias = self._manager(), self._known(request.alias)
        view = manager.pin(alias, pinned=request.pinned or not request.HasField("pinned"))
        return pb.PinModelResponse(model=_one(manager, view))

    async def GetQueue(self, request: Any, context: Any) -> Any:
        manager = self._manager()
        alias = self._known(request.alias) if request.alias else ""
        return pb.GetQueueResponse(
            queues=[to_queue(view) for view in manager.queues() if alias in {"", view.alias}]
        )

    async def GetVram(self, request: Any, context: Any) -> Any:
        manager = self._manager()
        models = manager.models()
        return pb.GetVramResponse(devices=[to_device(view, models) for view in manager.devices()])

    def _manager(self) -> ModelManagerApi:
        if self._parts.manager is None:
            raise Conflict(
                "This appliance runs no models itself. Set MODEL_DIR to a folder of .gguf files, or list `models` in the file of "
                "CONFIG_PATH, and restart it.",
                code="no_models",
            )
        return self._parts.manager

    def _known(self, alias: str) -> str:
        """Give the alias of a model that there is. Raises Invalid · NoSuchModel"""
        return self._manager().model(named(alias, "alias")).alias

    def _now(self) -> Any:
        return to_timestamp(self._parts.clock.now_s())


async def _loaded(manager: ModelManagerApi, alias: str, stay_s: float | None) -> ModelView | ApplianceError:
    """Give the loaded model, or why there is none: as a value, since nobody may be left to catch it."""
    try:
        return await manager.load(alias, keep_alive_s=stay_s)
    except ApplianceError as error:
        return error


def _told(manager: ModelManagerApi) -> list[pb.Model]:
    waiting = {line.alias: line.queue_length for line in manager.queues()}
    return [to_model(view, waiting) for view in manager.models()]


def _one(manager: ModelManagerApi, view: ModelView) -> pb.Model:
    return to_model(view, {line.alias: line.queue_length for line in manager.queues()})


def _progress(view: ModelView) -> tuple[object, ...]:
    """Give what a follower of a load wants to hear of; whole seconds, else a countdown would be told at every other model's change."""
    return (
        view.status,
        view.load_progress,
        None if view.expected_in_s is None else round(view.expected_in_s),
        view.error_message,
    )


def _stay_s(value: float) -> float:
    if not value <= LONGEST_STAY_S or value == float("-inf"):  # NaN is refused, too
        raise Invalid(
            f"`keep_alive_s` must be at most {LONGEST_STAY_S:.0f} (a year), or negative for ever; it is {value:g}.",
            param="keep_alive_s",
            code="out_of_range",
        )
    return value
