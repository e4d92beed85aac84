"""Take values from a source without an end, until the control API closes."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any, TypeVar

T = TypeVar("T")


async def follow_until(
    stopping: asyncio.Event, source: AsyncIterator[T], *, every_s: float | None = None
) -> AsyncGenerator[T | None, None]:
    """Yield the source's values until `stopping` is set.

    Close it with `aclosing`; that closes the source as well.

    Args:
        stopping: Ends the iteration.
        source: Where the values come from.
        every_s: Yield None after so many seconds without a value; None = never.
    """
    stop: asyncio.Future[Any] = asyncio.ensure_future(stopping.wait())  # noqa: TID251 - cancelled below
    coming: asyncio.Future[Any] | None = None
    try:
        while not stopping.is_set():
            if coming is None:
                coming = asyncio.ensure_future(anext(source))  # noqa: TID251 - awaited, or cancelled below
            done, _ = await asyncio.wait({coming, stop}, timeout=every_s, return_when=asyncio.FIRST_COMPLETED)
            if coming in done:
                try:
                    value = coming.result()
                except StopAsyncIteration:
                    return
                coming = None
                yield value
            elif not done:
                yield None
    finally:
        waiting = [stop] if coming is None else [stop, coming]
        for future in waiting:
            future.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        close = getattr(source, "aclose", None)
        if close is not None:
            await close()
