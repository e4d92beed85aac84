"""The interceptor of every gRPC call: checks the token, turns errors into status codes, logs one line."""

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from time import perf_counter  # the loop's own clock is too coarse for a short call
from typing import Any, TypeAlias

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from appliance.base import logs
from appliance.base.errors import ApplianceError, Internal, Invalid
from appliance.control.calls.group import AnyContext
from appliance.control.errors import abort, code_of
from appliance.control.guard import Guard
from appliance.control.writing import write

log = logs.get_logger("control")
OPEN_PREFIX = "/grpc.health.v1.Health/"  # liveness probes send no token

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"  # quoted: it is generic in the type stubs only
Behaviour: TypeAlias = Callable[[Any, AnyContext], Awaitable[Any]]


class Interceptor(grpc.aio.ServerInterceptor):
    """Wraps every handler, including those of health and reflection."""

    def __init__(self, guard: Guard) -> None:
        self._guard = guard

    async def intercept_service(
        self,
        continuation: "Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]]",
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "Handler | None":
        """Return the call's handler, wrapped; None for a method that does not exist."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        metadata = tuple(handler_call_details.invocation_metadata or ())
        return self._wrap(handler, handler_call_details.method, metadata)

    def _wrap(self, handler: Handler, method: str, metadata: tuple[tuple[str, str | bytes], ...]) -> Handler:
        """Return a handler of the same shape that calls the real one.

        It receives a single request as bytes, because nothing is parsed before the token is checked.
        """
        inner: Any = (
            handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream
        )
        is_generator = inspect.isasyncgenfunction(inner)
        is_streamed = handler.request_streaming

        async def run(request: Any, context: AnyContext) -> Any:
            if not method.startswith(OPEN_PREFIX):
                self._guard.check(metadata)
            if not is_streamed:
                request = _parse(handler.request_deserializer, request)
            if not is_generator:
                return await inner(request, context)
            async for message in inner(request, context):
                await write(context, message)
            return None

        async def guarded(request: Any, context: AnyContext) -> Any:
            return await _report(run, request, context, method=method)

        makers: dict[tuple[bool, bool], Callable[..., Handler]] = {
            (False, False): grpc.unary_unary_rpc_method_handler,
            (False, True): grpc.unary_stream_rpc_method_handler,
            (True, False): grpc.stream_unary_rpc_method_handler,
            (True, True): grpc.stream_stream_rpc_method_handler,
        }
        return makers[(handler.request_streaming, handler.response_streaming)](
            guarded,
            request_deserializer=handler.request_deserializer if is_streamed else None,
            response_serializer=handler.response_serializer,
        )


def _parse(deserialize: Any, data: bytes) -> Any:
    try:
        return deserialize(data)
    except DecodeError:
        raise Invalid("The request is not a message of this call's type.", code="invalid_message") from None


async def _report(run: Behaviour, request: Any, context: AnyContext, *, method: str) -> Any:
    """Run a handler; turn its error into a status code, and log one line.

    1. ApplianceError         → the code and details of its kind
    2. aborted by a handler   → unchanged
    3. cancelled              → the caller left, or its deadline passed; gRPC has reported it already
    4. anything else          → INTERNAL; only the log has the details
    """
    began_s = perf_counter()
    code = grpc.StatusCode.OK
    try:
        return await run(request, context)
    except ApplianceError as error:  # 1
        code = code_of(error)
        await abort(context, error, request_id=_request_id())
    except grpc.aio.AbortError:  # 2
        code = context.code() or grpc.StatusCode.UNKNOWN
        raise
    except asyncio.CancelledError:  # 3
        left_s: float | None = context.time_remaining()
        is_late = left_s is not None and left_s <= 0
        code = grpc.StatusCode.DEADLINE_EXCEEDED if is_late else grpc.StatusCode.CANCELLED
        raise
    except Exception as exc:  # 4
        code = grpc.StatusCode.INTERNAL
        log.error("unhandled", method=method, error=repr(exc), exc_info=exc)
        internal = Internal("Internal error. The appliance's log has the details.")
        await abort(context, internal, request_id=_request_id())
    finally:
        level = log.debug if method.startswith(OPEN_PREFIX) else log.info
        level(
            "control_call",
            method=method.lstrip("/"),
            peer=context.peer(),
            code=getattr(code, "name", str(code)),
            ms=round((perf_counter() - began_s) * 1000, 1),
        )


def _request_id() -> str:
    """Return the id that the handler bound for the log; "" if it bound none."""
    return str(logs.bound("id") or "")
