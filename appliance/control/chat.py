"""A chat request over gRPC: the same pipeline, router and receipt as an HTTP one; only the messages differ."""

from typing import Any

import structlog

from appliance.base import jsons
from appliance.base.errors import ApplianceError, Invalid, Unavailable, UpstreamFailed
from appliance.control.convert.backends import to_receipt
from appliance.control.convert.values import from_struct
from appliance.control.errors import error_of_reply, http_status_of
from appliance.control.parts import ControlParts
from appliance.control.v1 import control_pb2 as pb
from appliance.control.writing import sending, write
from appliance.engines.outcome import Finish
from appliance.engines.receipts import Receipt
from appliance.engines.types import EngineRequest, Operation

ROUTE = "appliance.control.v1.Control/Chat"


async def answer_chat(parts: ControlParts, request: pb.ChatRequest, context: Any) -> None:
    """Answer one chat request: deltas or one reply, then the receipt. The request's id goes out first, as `x-request-id`.

    Args:
        parts: What the control API reaches; the request goes through its pipeline, as an HTTP request does.

    Raises:
        Invalid: The request cannot be read.
        Unavailable: The appliance takes no new requests.
        ApplianceError: What `Router.answer` raises.
        CancelledError: The caller left; the upstream connection is closed and the request is settled before this ends.
    """
    with parts.pipeline.guarded_request(ROUTE) as running:
        receipt, sent = running.receipt, _Sent(context)
        structlog.contextvars.bind_contextvars(id=receipt.id)
        try:
            with sending():
                await context.send_initial_metadata((("x-request-id", receipt.id),))
            if parts.is_draining():
                raise Unavailable(
                    "The appliance takes no new requests at present.", code="draining", retry_after_s=5
                )
            parts.pipeline.admit_guarded(running)
            await _answer(parts, engine_request(request, receipt), sent)
            running.finish, receipt.status = Finish.DONE, 200
        except ApplianceError as error:
            running.finish = Finish.CUT_OFF if sent.messages else Finish.ERROR
            receipt.status = http_status_of(error)
            receipt.error = f"{error.kind.value}: {error.message}"
            raise
        except Exception as exc:
            running.finish, receipt.status = Finish.ERROR, 500
            receipt.error = f"internal: {type(exc).__name__}"
            raise
    await write(context, pb.ChatResponse(receipt=to_receipt(receipt)))


class _Sent:
    """Writes messages, and knows whether one has gone."""

    def __init__(self, context: Any) -> None:
        self._context = context
        self.messages = 0

    async def write(self, message: pb.ChatResponse) -> None:
        self.messages += 1
        await write(self._context, message)


async def _answer(parts: ControlParts, request: EngineRequest, sent: _Sent) -> None:
    reply = await parts.router.answer(request)
    if reply.events is None:
        if reply.status >= 400:
            raise error_of_reply(reply)
        await sent.write(pb.ChatResponse(reply=whole_reply(reply.body or b"")))
        return
    events = reply.events
    try:
        async for piece in events:
            for delta in deltas_of(piece):
                await sent.write(pb.ChatResponse(delta=delta))
    finally:
        await events.aclose()


def engine_request(request: pb.ChatRequest, receipt: Receipt) -> EngineRequest:
    """Read the message into what the engines take.

    Gives   EngineRequest; `raw` holds the caller's own bytes where it sent a whole body that needs no change
    Raises  Invalid with the field at fault
    """
    if request.openai_json:
        if request.messages or request.model or request.HasField("options"):
            raise Invalid(
                "Send either openai_json, or model, messages and options; not both.", param="openai_json"
            )
        body = _read_object(request.openai_json)
    else:
        body = from_struct(request.options)
        if "messages" not in body:  # messages with parts, tool calls … may stand in options
            body["messages"] = [{"role": m.role, "content": m.content} for m in request.messages]
        elif request.messages:
            raise Invalid("`messages` stands in options and beside it; send one of them.", param="messages")
        if request.model:
            body["model"] = request.model
    _check(body)
    is_stream = request.stream or bool(body.get("stream"))
    raw = request.openai_json or None
    if is_stream != bool(body.get("stream")):
        body, raw = {**body, "stream": True}, None
    return EngineRequest(Operation.CHAT, body, raw, body.get("model") or "", is_stream, receipt)


def _read_object(data: bytes) -> dict[str, Any]:
    try:
        body = jsons.loads(data)
    except jsons.InvalidJson as exc:
        raise Invalid(
            f"openai_json is no valid JSON: {exc}.", param="openai_json", code="invalid_json"
        ) from None
    if not isinstance(body, dict):
        raise Invalid("openai_json must be a JSON object.", param="openai_json", code="invalid_json")
    return body


def _check(body: dict[str, Any]) -> None:
    """Check what our own rooms read; the rest is for whoever answers to judge."""
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise Invalid(
            "`messages` must hold at least one message.", param="messages", code="missing_required_parameter"
        )
    for number, message in enumerate(messages):
        if not isinstance(message, dict):
            raise Invalid(
                f"`messages.{number}` must be an object.", param=f"messages.{number}", code="invalid_type"
            )
        if not isinstance(message.get("role"), str) or not message["role"]:
            raise Invalid(
                f'`messages.{number}.role` must be a word such as "user".',
                param=f"messages.{number}.role",
                code="missing_required_parameter",
            )
        if not isinstance(message.get("content"), (str, list, type(None))):
            raise Invalid(
                f"`messages.{number}.content` must be a string or an array of parts.",
                param=f"messages.{number}.content",
                code="invalid_type",
            )
    for name, kind, words in (
        ("model", str, "a string"),
        ("stream", bool, "true or false"),
        ("stream_options", dict, "an object"),
    ):
        if body.get(name) is not None and not isinstance(body[name], kind):
            raise Invalid(f"`{name}` must be {words}.", param=name, code="invalid_type")


def whole_reply(body: bytes) -> pb.ChatReply:
    """Give an answer in one piece as a message."""
    value = jsons.loads(body)
    choices = value.get("choices") if isinstance(value, dict) else None
    first = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
    message = first.get("message") or {}
    return pb.ChatReply(
        text=_text(message.get("content")),
        reasoning=_reasoning(message),
        finish_reason=_text(first.get("finish_reason")),
        openai_json=body,
    )


def deltas_of(piece: bytes) -> list[pb.ChatDelta]:
    """Give the deltas of a piece of whole SSE events; comments and `[DONE]` give none.

    Raises  UpstreamFailed when an event is an error
    """
    found = []
    for event in piece.split(b"\n\n"):
        data = b"\n".join(line[5:].strip() for line in event.split(b"\n") if line.startswith(b"data:"))
        if data and data != b"[DONE]":
            found.append(_delta(data))
    return found


def _delta(data: bytes) -> pb.ChatDelta:
    value = jsons.loads(data)
    if isinstance(value, dict) and value.get("error") and not value.get("choices"):
        error = value["error"]
        raise UpstreamFailed(
            str(error.get("message") if isinstance(error, dict) else error), code="upstream_error_event"
        )
    choices = value.get("choices") if isinstance(value, dict) else None
    first = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
    delta = first.get("delta") or {}
    return pb.ChatDelta(
        index=first.get("index") or 0,
        text=_text(delta.get("content")),
        reasoning=_reasoning(delta),
        finish_reason=_text(first.get("finish_reason")),
        openai_json=data,
    )


def _text(value: Any) -> str:
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else ""


def _reasoning(message: dict[str, Any]) -> str:
    return _text(message.get("reasoning_content") or message.get("reasoning"))
