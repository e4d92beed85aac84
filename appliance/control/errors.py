"""Our errors as gRPC status codes with rich details. One row per kind."""

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from appliance.base.errors import ApplianceError, Kind

GRPC_CODE = {
    Kind.INVALID: grpc.StatusCode.INVALID_ARGUMENT,
    Kind.UNAUTHENTICATED: grpc.StatusCode.UNAUTHENTICATED,
    Kind.FORBIDDEN: grpc.StatusCode.PERMISSION_DENIED,
    Kind.NOT_FOUND: grpc.StatusCode.NOT_FOUND,
    Kind.NO_SUCH_MODEL: grpc.StatusCode.NOT_FOUND,
    Kind.CONFLICT: grpc.StatusCode.FAILED_PRECONDITION,
    Kind.TOO_LARGE: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Kind.EXHAUSTED: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Kind.UNSUPPORTED: grpc.StatusCode.UNIMPLEMENTED,
    Kind.TIMEOUT: grpc.StatusCode.DEADLINE_EXCEEDED,
    Kind.UNAVAILABLE: grpc.StatusCode.UNAVAILABLE,
    Kind.UPSTREAM: grpc.StatusCode.UNAVAILABLE,
    Kind.CANCELLED: grpc.StatusCode.CANCELLED,
    Kind.INTERNAL: grpc.StatusCode.INTERNAL,
}
DOMAIN = "control.appliance"


def status_of(error: ApplianceError) -> grpc.Status:
    """Give the gRPC status: code, text, and details (ErrorInfo always; BadRequest with a param; RetryInfo with a time)."""
    details = [error_details_pb2.ErrorInfo(reason=(error.code or error.kind.value).upper(), domain=DOMAIN)]
    packed = [_packed(detail) for detail in details]
    if error.param:
        violation = error_details_pb2.BadRequest.FieldViolation(field=error.param, description=error.message)
        packed.append(_packed(error_details_pb2.BadRequest(field_violations=[violation])))
    if error.retry_after_s is not None:
        delay = duration_pb2.Duration(seconds=int(error.retry_after_s), nanos=int(error.retry_after_s % 1 * 1e9))
        packed.append(_packed(error_details_pb2.RetryInfo(retry_delay=delay)))
    code = getattr(code_pb2, GRPC_CODE[error.kind].name)
    return rpc_status.to_status(status_pb2.Status(code=code, message=error.message, details=packed))


def _packed(detail: object) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(detail)
    return packed
