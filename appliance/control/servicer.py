"""The calls of the control API: unpack, ask the very object that HTTP uses, pack."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from google.protobuf import json_format

from appliance.base import jsons
from appliance.base.errors import ApplianceError, Conflict, Invalid, NotFound, Unavailable
from appliance.control import convert
from appliance.control.parts import ControlParts
from appliance.control.v1 import control_pb2 as pb
from appliance.engines.receipts import Receipt
from appliance.engines.types import EngineRequest, Operation

MOST_LINES = 2000


class Servicer:
    """One method per call, named as in the protocol file."""

    def __init__(self, parts: ControlParts) -> None:
        self._parts = parts

    def _status(self) -> pb.Status:
        return convert.status(self._parts.status(), self._parts.router.states())

    async def GetStatus(self, request: Any, context: Any) -> pb.GetStatusResponse:
        return pb.GetStatusResponse(status=self._status())

    async def WatchStatus(self, request: Any, context: Any) -> AsyncIterator[pb.WatchStatusResponse]:
        if request.interval_s < 0:
            raise Invalid("`interval_s` must not be negative.", param="interval_s")
        every_s = max(request.interval_s, 0.1) if request.interval_s else None
        changes = self._parts.changed.follow()
        await anext(changes)
        yield pb.WatchStatusResponse(status=self._status())
        following = asyncio.ensure_future(anext(changes))  # noqa: TID251 - cancelled below
        try:
            while True:
                done, _ = await asyncio.wait({following}, timeout=every_s)
                if done:
                    following = asyncio.ensure_future(anext(changes))  # noqa: TID251
                status = self._status()
                yield pb.WatchStatusResponse(status=status)
                if status.state == pb.APPLIANCE_STATE_STOPPING:
                    return
        finally:
            following.cancel()

    async def GetIdentity(self, request: Any, context: Any) -> pb.GetIdentityResponse:
        return convert.identity(self._parts.identity())

    async def GetSettings(self, request: Any, context: Any) -> pb.GetSettingsResponse:
        return pb.GetSettingsResponse(settings=[
            convert.setting(row) for row in self._parts.settings() if row.is_set or not request.set_only])

    async def Reload(self, request: Any, context: Any) -> pb.ReloadResponse:
        return convert.reload_result(await self._parts.reload(dict(request.overrides), request.dry_run))

    async def Drain(self, request: Any, context: Any) -> pb.DrainResponse:
        self._parts.drain()
        return pb.DrainResponse(status=self._status())

    async def Resume(self, request: Any, context: Any) -> pb.ResumeResponse:
        self._parts.resume()
        return pb.ResumeResponse(status=self._status())

    async def Shutdown(self, request: Any, context: Any) -> pb.ShutdownResponse:
        grace_s = request.grace_s if request.HasField("grace_s") else None
        if grace_s is not None and grace_s < 0:
            raise Invalid("`grace_s` must not be negative.", param="grace_s")
        asyncio.get_running_loop().call_later(0.05, self._parts.shutdown, grace_s)      # the answer first
        return pb.ShutdownResponse()

    # ---- the worker

    def _worker(self) -> Any:
        worker = self._parts.worker
        if worker is None or not worker.as_dict()["command"]:
            raise Conflict("No worker is configured. Set WORKER=kuzco and CODE, or WORKER_COMMAND.", code="no_worker")
        return worker

    async def GetWorker(self, request: Any, context: Any) -> pb.GetWorkerResponse:
        worker = self._parts.worker
        return pb.GetWorkerResponse(worker=convert.worker(worker.as_dict() if worker is not None else {"state": "off"}))

    async def StartWorker(self, request: Any, context: Any) -> pb.StartWorkerResponse:
        return pb.StartWorkerResponse(worker=await self._started())

    async def _started(self) -> pb.Worker:
        worker = self._worker()
        await worker.start()
        if worker.as_dict()["state"] == "refused":
            raise Conflict(worker.as_dict()["reason"], code="worker_refused")
        return convert.worker(worker.as_dict())

    async def StopWorker(self, request: Any, context: Any) -> pb.StopWorkerResponse:
        worker = self._worker()
        await worker.stop()
        return pb.StopWorkerResponse(worker=convert.worker(worker.as_dict()))

    async def RestartWorker(self, request: Any, context: Any) -> pb.RestartWorkerResponse:
        await self._worker().stop()
        return pb.RestartWorkerResponse(worker=await self._started())

    # ---- what happened

    async def TailLogs(self, request: Any, context: Any) -> AsyncIterator[pb.TailLogsResponse]:
        lines = self._parts.lines
        last = lines.tail(1)
        after = last[0].number if last else 0
        for line in lines.tail(min(request.count, MOST_LINES), source=request.source):
            yield convert.line(line)
        if request.follow:
            async for line in lines.follow(after=after, source=request.source):
                yield convert.line(line)

    async def ListBackends(self, request: Any, context: Any) -> pb.ListBackendsResponse:
        return pb.ListBackendsResponse(backends=[convert.backend(state) for state in self._parts.router.states()])

    async def GetReceipt(self, request: Any, context: Any) -> pb.GetReceiptResponse:
        found = self._parts.receipts.get(request.id)
        if found is None:
            raise NotFound(f"There is no receipt {request.id!r}; the last thousand are kept.", param="id")
        return pb.GetReceiptResponse(receipt=convert.receipt(found))

    async def ListReceipts(self, request: Any, context: Any) -> pb.ListReceiptsResponse:
        return pb.ListReceiptsResponse(receipts=[convert.receipt(r) for r in self._parts.receipts.latest(request.count or 100)])

    # ---- a chat

    async def Chat(self, request: Any, context: Any) -> AsyncIterator[pb.ChatResponse]:
        if self._parts.is_draining():
            raise Unavailable("The appliance takes no new requests at present.", code="draining", retry_after_s=5)
        asked = _engine_request(request, self._parts.new_receipt("grpc Chat"))
        receipt, events = asked.receipt, None
        try:
            reply = await self._parts.router.answer(asked)
            receipt.status = 200
            if reply.events is None:
                yield convert.reply(jsons.loads(reply.body or b"{}"))
            else:
                events = reply.events
                async for piece in events:
                    for message in convert.deltas(piece):
                        yield message
            receipt.finish = "done"
        except ApplianceError as error:
            receipt.finish, receipt.error = "error", f"{error.kind.value}: {error.message}"
            raise
        finally:
            if events is not None:
                await events.aclose()  # type: ignore[attr-defined]
            receipt.finish = receipt.finish or "client_left"
            receipt.status = receipt.status or (499 if receipt.finish == "client_left" else 500)
            self._parts.finish(receipt)
        yield pb.ChatResponse(receipt=convert.receipt(receipt))


def _engine_request(request: Any, receipt: Receipt) -> EngineRequest:
    """Build the OpenAI body: openai_json, then options, then the message's own fields on top."""
    body: dict[str, Any] = read_json(request.openai_json) if request.openai_json else {}
    if request.HasField("options"):
        options = json_format.MessageToDict(request.options)        # a Struct knows floats alone
        body |= {name: int(v) if isinstance(v, float) and v.is_integer() else v for name, v in options.items()}
    if request.messages:
        body["messages"] = [{"role": m.role or "user", "content": m.content} for m in request.messages]
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages or not all(isinstance(m, dict) for m in messages):
        raise Invalid("`messages` must have at least one message.", param="messages")
    if request.model:
        body["model"] = request.model
    body.pop("stream", None)
    if request.stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    return EngineRequest(Operation.CHAT, body, None, str(body.get("model") or ""), request.stream, receipt)


def read_json(data: bytes) -> dict[str, Any]:
    try:
        value = jsons.loads(data)
    except jsons.BadJson as exc:
        raise Invalid(f"`openai_json` is no valid JSON: {exc}.", param="openai_json") from None
    if not isinstance(value, dict):
        raise Invalid("`openai_json` must be a JSON object.", param="openai_json")
    return value
