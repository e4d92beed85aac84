"""A chat request over gRPC as the engines' request, and their replies as messages."""

from typing import Any, TypeVar

from appliance.base import jsons
from appliance.base.errors import Invalid, UpstreamFailed
from appliance.control.convert.values import from_struct, to_sendable
from appliance.control.v1 import control_pb2 as pb
from appliance.engines.receipts import Receipt
from appliance.engines.types import EngineRequest, Operation

Part = TypeVar("Part", pb.ChatDelta, pb.ChatReply)
FIELD_TYPES: tuple[tuple[str, type, str], ...] = (  # the fields that the appliance reads: name, type, words
    ("model", str, "a string"),
    ("stream", bool, "true or false"),
    ("stream_options", dict, "an object"),
)


def to_engine_request(request: pb.ChatRequest, receipt: Receipt) -> EngineRequest:
    """Return the message as the engines' request; `raw` is the caller's whole body where it needs no change.

    Raises:
        Invalid: A field is missing or invalid; `param` names it.
    """
    body = _body(request)
    _check(body)
    is_stream = request.stream or bool(body.get("stream"))
    raw = request.openai_json or None
    if is_stream != bool(body.get("stream")):
        body, raw = {**body, "stream": True}, None
    return EngineRequest(Operation.CHAT, body, raw, body.get("model") or "", is_stream, receipt)


def _body(request: pb.ChatRequest) -> dict[str, Any]:
    """Return OpenAI's body.

    1. openai_json                → that
    2. options with messages      → those (messages with parts, tool calls …)
    3. else                       → options, messages and model
    """
    if request.openai_json:  # 1
        if request.messages or request.model or request.HasField("options"):
            raise Invalid(
                "Send either openai_json, or model, messages and options; not both.", param="openai_json"
            )
        return _parse_object(request.openai_json)
    body = from_struct(request.options)
    if "messages" not in body:  # 3
        body["messages"] = [{"role": m.role, "content": m.content} for m in request.messages]
    elif request.messages:  # 2
        raise Invalid("`messages` is set in options and beside it; send one of them.", param="messages")
    if request.model:
        body["model"] = request.model
    return body


def _parse_object(data: bytes) -> dict[str, Any]:
    try:
        body = jsons.loads(data)
    except jsons.InvalidJson as exc:
        raise Invalid(
            f"openai_json is not valid JSON: {exc}.", param="openai_json", code="invalid_json"
        ) from None
    if not isinstance(body, dict):
        raise Invalid("openai_json must be a JSON object.", param="openai_json", code="invalid_json")
    return body


def _check(body: dict[str, Any]) -> None:
    """Check the fields that the appliance reads; the engine checks the others."""
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise Invalid(
            "`messages` must have at least one message.",
            param="messages",
            code="missing_required_parameter",
        )
    for number, message in enumerate(messages):
        _check_message(message, f"messages.{number}")
    for name, kind, words in FIELD_TYPES:
        if body.get(name) is not None and not isinstance(body[name], kind):
            raise Invalid(f"`{name}` must be {words}.", param=name, code="invalid_type")


def _check_message(message: Any, where: str) -> None:
    if not isinstance(message, dict):
        raise Invalid(f"`{where}` must be an object.", param=where, code="invalid_type")
    if not isinstance(message.get("role"), str) or not message["role"]:
        raise Invalid(
            f'`{where}.role` must be a string such as "user".',
            param=f"{where}.role",
            code="missing_required_parameter",
        )
    if not isinstance(message.get("content"), (str, list, type(None))):
        raise Invalid(
            f"`{where}.content` must be a string or an array of parts.",
            param=f"{where}.content",
            code="invalid_type",
        )


def in_form(part: Part, form: pb.ReplyForm) -> Part:
    """Leave out of a delta or a reply what its form does not have; returns the same message."""
    if form == pb.REPLY_FORM_FIELDS:
        part.ClearField("openai_json")
    elif form == pb.REPLY_FORM_JSON:
        part.ClearField("text")
        part.ClearField("reasoning")
    return part


def to_reply(body: bytes) -> pb.ChatReply:
    """Return a whole reply as a message."""
    value = jsons.loads(body)
    first = _first_choice(value)
    message = first.get("message") or {}
    return pb.ChatReply(
        text=_text(message.get("content")),
        reasoning=_reasoning(message),
        finish_reason=_text(first.get("finish_reason")),
        openai_json=body,
    )


def to_deltas(piece: bytes) -> list[pb.ChatDelta]:
    """Return the deltas of a piece of whole SSE events; comments and `[DONE]` have none.

    Raises:
        UpstreamFailed: An event is an error.
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
    first = _first_choice(value)
    delta = first.get("delta") or {}
    return pb.ChatDelta(
        index=first.get("index") or 0,
        text=_text(delta.get("content")),
        reasoning=_reasoning(delta),
        finish_reason=_text(first.get("finish_reason")),
        openai_json=data,
    )


def _first_choice(value: Any) -> dict[str, Any]:
    choices = value.get("choices") if isinstance(value, dict) else None
    return choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}


def _text(value: Any) -> str:
    return to_sendable(value) if isinstance(value, str) else ""


def _reasoning(message: dict[str, Any]) -> str:
    return _text(message.get("reasoning_content") or message.get("reasoning"))
