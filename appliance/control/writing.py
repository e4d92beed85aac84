"""Send to a caller that may have left; whatever gRPC reports then becomes CancelledError."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import grpc.aio
from grpc.aio import ServicerContext

Message = TypeVar("Message")


@contextmanager
def sending() -> Iterator[None]:
    """Turn the failure of an operation on a call whose caller has left into CancelledError.

    gRPC cancels the handler's task then, but a pending operation fails first, with InternalError.
    """
    try:
        yield
    except grpc.aio.InternalError as exc:
        raise asyncio.CancelledError("the caller left") from exc


async def write(context: ServicerContext[Any, Message], message: Message) -> None:
    """Send one message of a stream; wait while the caller does not read.

    Raises:
        asyncio.CancelledError: The caller has left.
    """
    with sending():
        await context.write(message)
