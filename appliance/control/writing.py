"""Send to a caller that may have left. That it left is a cancellation, however gRPC comes to tell it."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc.aio


@contextmanager
def sending() -> Iterator[None]:
    """Turn the failure of an operation on a call whose caller has left into CancelledError.

    gRPC cancels the handler's task then, but an operation that was under way fails first, with an InternalError.
    """
    try:
        yield
    except grpc.aio.InternalError as exc:
        raise asyncio.CancelledError("the caller left") from exc


async def write(context: Any, message: Any) -> None:
    """Send one message of a stream, waiting while the caller does not read.

    Raises  CancelledError when the caller has left
    """
    with sending():
        await context.write(message)
