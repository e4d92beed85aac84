"""Iterate over an endless source until the control API closes."""

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
        every_s: After this many seconds without a value None is yielded; None = never.
    """
    stop: asyncio.Future[Any] = asyncio.ensure_future(stopping.wait())  # noqa: TID251 - cancelled below
    pending: asyncio.Future[Any] | None = None
    try:
        while not stopping.is_set():
            if pending is None:
                pending = asyncio.ensure_future(anext(source))  # noqa: TID251 - awaited, or cancelled below
            done, _ = await asyncio.wait(
                {pending, stop}, timeout=every_s, return_when=asyncio.FIRST_COMPLETED
            )
            if pending in done:
                try:
                    value = pending.result()
                except StopAsyncIteration:
                    return
                pending = None
                yield value
            elif not done:
                yield None
    finally:
        waiting = [stop] if pending is None else [stop, pending]
        for future in waiting:
            future.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        close = getattr(source, "aclose", None)
        if close is not None:
            await close()
