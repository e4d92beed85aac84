"""The call about chat: it uses the same pipeline, router and receipts as an HTTP request."""

from grpc.aio import ServicerContext

from appliance.base import logs
from appliance.base.errors import ApplianceError, Unavailable
from appliance.control.calls.group import CallGroup
from appliance.control.convert.backends import to_receipt
from appliance.control.convert.chat import in_form, to_deltas, to_engine_request, to_reply
from appliance.control.errors import error_of_reply, http_status_of
from appliance.control.v1 import control_pb2 as pb
from appliance.control.writing import sending, write
from appliance.engines.outcome import Finish
from appliance.engines.types import EngineRequest

ROUTE = "appliance.control.v1.Control/Chat"


class ChatCalls(CallGroup):
    """Chat."""

    async def Chat(
        self, request: pb.ChatRequest, context: ServicerContext[pb.ChatRequest, pb.ChatResponse]
    ) -> None:
        """Answer one chat request: deltas or one reply, then the receipt.

        The request's id is sent first, as the header `x-request-id`. When the caller leaves, the upstream
        request is cancelled, and the request is settled before this returns.

        Raises:
            Invalid: The request is invalid.
            Unavailable: The appliance takes no new requests.
            ApplianceError: What `Router.answer` raises.
        """
        pipeline = self._parts.pipeline
        with pipeline.guarded_request(ROUTE) as running:
            receipt, sender = running.receipt, _Sender(context)
            logs.bind(id=receipt.id)
            try:
                with sending():
                    await context.send_initial_metadata((("x-request-id", receipt.id),))
                if self._parts.is_draining():
                    raise Unavailable(
                        "The appliance is draining and takes no new requests.",
                        code="draining",
                        retry_after_s=5,
                    )
                pipeline.admit_guarded(running)
                await self._answer(to_engine_request(request, receipt), sender, request.form)
                running.finish, receipt.status = Finish.DONE, 200
            except ApplianceError as error:
                running.finish = Finish.CUT_OFF if sender.messages else Finish.ERROR
                receipt.status = http_status_of(error)
                receipt.error = f"{error.kind.value}: {error.message}"
                raise
            except Exception as exc:
                running.finish, receipt.status = Finish.ERROR, 500
                receipt.error = f"internal: {type(exc).__name__}"
                raise
        await write(context, pb.ChatResponse(receipt=to_receipt(receipt)))

    async def _answer(self, engine_request: EngineRequest, sender: "_Sender", form: pb.ReplyForm) -> None:
        """Ask the engines and send what they reply.

        1. an error             → raised
        2. a whole reply        → one message
        3. a stream of events   → one message per delta
        """
        reply = await self._parts.router.answer(engine_request)
        if reply.events is None:
            if reply.status >= 400:  # 1
                raise error_of_reply(reply)
            await sender.send(pb.ChatResponse(reply=in_form(to_reply(reply.body or b""), form)))  # 2
            return
        try:
            async for piece in reply.events:  # 3
                for delta in to_deltas(piece):
                    await sender.send(pb.ChatResponse(delta=in_form(delta, form)))
        finally:
            await reply.events.aclose()


class _Sender:
    """Sends messages, and counts them."""

    def __init__(self, context: ServicerContext[pb.ChatRequest, pb.ChatResponse]) -> None:
        self._context = context
        self.messages = 0

    async def send(self, message: pb.ChatResponse) -> None:
        self.messages += 1
        await write(self._context, message)
