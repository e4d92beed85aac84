"""Errors as gRPC statuses: a code for every Kind, and google.rpc details that programs can read."""

from math import ceil
from typing import Any

import grpc
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc.aio import ServicerContext

from appliance.base import jsons
from appliance.base.errors import ApplianceError, Forbidden, Invalid, Kind, NotFound, UpstreamFailed
from appliance.control.writing import sending
from appliance.engines.types import EngineReply

DOMAIN = "appliance"
DETAILS_KEY = "grpc-status-details-bin"
# Limits in characters: peers reject trailers beyond 8 KiB.
MAX_MESSAGE_CHARS = 1000
MAX_ATTEMPTS_CHARS = 1500
MAX_VIOLATIONS = 10

GRPC_CODE = {
    Kind.INVALID: grpc.StatusCode.INVALID_ARGUMENT,
    Kind.UNAUTHENTICATED: grpc.StatusCode.UNAUTHENTICATED,
    Kind.FORBIDDEN: grpc.StatusCode.PERMISSION_DENIED,
    Kind.PAYMENT_REQUIRED: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Kind.NOT_FOUND: grpc.StatusCode.NOT_FOUND,
    Kind.NO_SUCH_MODEL: grpc.StatusCode.NOT_FOUND,
    Kind.CONFLICT: grpc.StatusCode.FAILED_PRECONDITION,
    Kind.TOO_LARGE: grpc.StatusCode.RESOURCE_EXHAUSTED,  # gRPC's own code for a message that is too large
    Kind.EXHAUSTED: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Kind.UNSUPPORTED: grpc.StatusCode.UNIMPLEMENTED,
    Kind.TIMEOUT: grpc.StatusCode.DEADLINE_EXCEEDED,
    Kind.UNAVAILABLE: grpc.StatusCode.UNAVAILABLE,
    Kind.UPSTREAM: grpc.StatusCode.UNAVAILABLE,
    Kind.INTERNAL: grpc.StatusCode.INTERNAL,
}

# An upstream's own HTTP status (`details["status"]`) is more exact than the kind.
CODE_OF_HTTP = {
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    409: grpc.StatusCode.ABORTED,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    501: grpc.StatusCode.UNIMPLEMENTED,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}

# What a receipt shows as `status` for a call that failed here. Source: google.rpc.Code, "HTTP Mapping".
HTTP_OF_CODE = {
    grpc.StatusCode.OK: 200,
    grpc.StatusCode.CANCELLED: 499,
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.UNAUTHENTICATED: 401,
    grpc.StatusCode.PERMISSION_DENIED: 403,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.ABORTED: 409,
    grpc.StatusCode.FAILED_PRECONDITION: 400,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
    grpc.StatusCode.UNIMPLEMENTED: 501,
    grpc.StatusCode.UNAVAILABLE: 503,
    grpc.StatusCode.DEADLINE_EXCEEDED: 504,
    grpc.StatusCode.INTERNAL: 500,
}


class RolledBack(ApplianceError):
    """New settings could not be applied; the previous ones are in force again."""

    kind = Kind.CONFLICT
    default_code = "reload_rolled_back"


def code_of(error: ApplianceError) -> grpc.StatusCode:
    """Return the status code.

    1. a roll-back                  → ABORTED
    2. an upstream's own status     → its code
    3. else                         → that of the kind
    """
    if isinstance(error, RolledBack):  # 1
        return grpc.StatusCode.ABORTED
    status = error.details.get("status")
    code = CODE_OF_HTTP.get(status) if isinstance(status, int) else None
    return code or GRPC_CODE[error.kind]  # 2, 3


def http_status_of(error: ApplianceError) -> int:
    """Return the HTTP status that a receipt shows for a failed call."""
    status = error.details.get("status")
    if error.kind is Kind.PAYMENT_REQUIRED:  # its code is that of too many requests, too
        return 402
    return status if isinstance(status, int) else HTTP_OF_CODE[code_of(error)]


def rich_status(error: ApplianceError, *, request_id: str = "") -> status_pb2.Status:
    """Return google.rpc.Status with ErrorInfo, and BadRequest and RetryInfo where they apply.

    Args:
        error: The failure; `details["violations"]` may list further (field, description) pairs.
        request_id: The request's id; "" = none.
    """
    metadata = {"kind": error.kind.value}
    if request_id:
        metadata["request_id"] = request_id
    if attempts := error.details.get("attempts"):
        metadata["attempts"] = jsons.dumps_text(attempts)[:MAX_ATTEMPTS_CHARS]
    details: list[Any] = [
        error_details_pb2.ErrorInfo(
            reason=(error.code or error.kind.value).upper(), domain=DOMAIN, metadata=metadata
        )
    ]
    violations = [
        *([(error.param, error.message)] if error.param else []),
        *error.details.get("violations", []),
    ]
    if violations:
        details.append(
            error_details_pb2.BadRequest(
                field_violations=[
                    error_details_pb2.BadRequest.FieldViolation(
                        field=name, description=text[: MAX_MESSAGE_CHARS // 4]
                    )
                    for name, text in violations[:MAX_VIOLATIONS]
                ]
            )
        )
    if error.retry_after_s is not None:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromMilliseconds(ceil(error.retry_after_s * 1000))
        details.append(retry)
    packed = []
    for detail in details:
        box = any_pb2.Any()
        box.Pack(detail)
        packed.append(box)
    message = error.message
    if len(message) > MAX_MESSAGE_CHARS:
        message = message[:MAX_MESSAGE_CHARS] + "…"
    return status_pb2.Status(code=code_of(error).value[0], message=message, details=packed)


async def abort(context: ServicerContext[Any, Any], error: ApplianceError, *, request_id: str = "") -> None:
    """End a call with the error's code, text and details.

    Raises:
        grpc.aio.AbortError: Always; it ends the handler.
    """
    status = rich_status(error, request_id=request_id)
    trailers = [(DETAILS_KEY, status.SerializeToString())]
    if request_id:
        trailers.append(("x-request-id", request_id))
    with sending():
        await context.abort(code_of(error), status.message, tuple(trailers))


def error_of_reply(reply: EngineReply) -> ApplianceError:
    """Return an upstream's error response as an ApplianceError, with its text, field and code."""
    try:
        value = jsons.loads(reply.body or b"")
    except jsons.InvalidJson:
        value = None
    given = value.get("error") if isinstance(value, dict) else None
    fields = given if isinstance(given, dict) else {"message": given} if isinstance(given, str) else {}
    kinds = {403: Forbidden, 404: NotFound}
    kind = UpstreamFailed if reply.status >= 500 else kinds.get(reply.status, Invalid)
    param, code = fields.get("param"), fields.get("code")
    return kind(
        str(fields.get("message") or f"The upstream responded with status {reply.status}."),
        param=param if isinstance(param, str) else None,
        code=code if isinstance(code, str) else None,
        details={"status": reply.status},
    )
