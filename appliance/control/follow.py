"""Take values from something that never ends, until the door closes."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any, TypeVar

T = TypeVar("T")


async def followed(
    source: AsyncIterator[T], *, stopping: asyncio.Event, every_s: float | None = None
) -> AsyncGenerator[T | None, None]:
    """Give the source's values until `stopping` is set. Close it with `aclosing`; the source is closed with it.

    Takes   every_s: give None after so many seconds without a value; None = never
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
