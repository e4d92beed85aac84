"""The two feeds about models, as server-sent events: the status of each model as it changes, and figures every two seconds.

A follower is given the latest state, not every step to it: nothing is queued for it, so one that reads slowly or leaves costs nothing.
Source: system D, `/v1/models/status/stream` and `/metrics/stream`.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import Any

from appliance.base import jsons
from appliance.base.clock import Clock, format_rfc3339
from appliance.base.errors import ApplianceError
from appliance.front.manager.snapshot import snapshot
from appliance.front.pipeline.errors import openai_error
from appliance.models.status.objects import as_model, as_status, before_manager
from appliance.models.status.views import ModelManagerApi

SILENCE_S = 30.0  # without an event for so long, a follower gets a heartbeat
EVERY_S = 2.0  # between two `metrics` events
GATHER_S = 0.05  # changes that come closer together are told together
LOOK_S = 0.2  # while there is no board yet: between two looks for one


def event(name: str, value: Any) -> bytes:
    """Render one event: `event: NAME`, one line of JSON data, a blank line."""
    return b"event: " + name.encode() + b"\ndata: " + jsons.dumps(value) + b"\n\n"


def event_of_error(error: ApplianceError) -> bytes:
    """Render the last event of a feed in which an error struck."""
    return event("error", {"error": openai_error(error)})


class StatusFeeds:
    """Makes feeds; `close` ends all of them with a last word.

    Takes   board: gives the board, None while there is none yet; silence_s, every_s: seconds, above 0
    """

    def __init__(
        self,
        manager: Callable[[], ModelManagerApi | None],
        *,
        clock: Clock,
        silence_s: float = SILENCE_S,
        every_s: float = EVERY_S,
    ) -> None:
        self._manager = manager
        self._clock = clock
        self._silence_s = silence_s
        self._every_s = every_s
        self._began_s = clock.now_s()
        self._closed = asyncio.Event()

    def close(self) -> None:
        """Let every feed end now: its last event says that the server is shutting down."""
        self._closed.set()
        if (manager := self._manager()) is not None:
            manager.changed.set(manager.changed.value + 1)  # wakes those that wait for a change

    def now(self) -> dict[str, Any]:
        """Give the full status at this moment, also before there is a board."""
        manager = self._manager()
        status = as_status(manager) if manager is not None else before_manager(self._began_s)
        if self._closed.is_set():
            status["server"]["status"] = "shutting_down"
        return status

    async def status(self) -> AsyncGenerator[bytes, None]:
        """Follow the status.

        Gives   `full_status` first, then `model_update` (one model) and `server_update` (`{status, started_at, updated_at}`) as they
                change, `heartbeat` (`{timestamp, server_status}`) when nothing did for silence_s; ends after the server_update that says
                shutting_down
        """
        told = self.now()
        yield event("full_status", told)
        while told["server"]["status"] != "shutting_down":
            seen = self._version()
            now = self.now()
            news = _differences(told, now)
            told = now
            for piece in news:
                yield piece
            if news:
                await asyncio.sleep(GATHER_S)
            elif not await self._change(seen):
                yield event(
                    "heartbeat",
                    {
                        "timestamp": format_rfc3339(self._clock.now_s()),
                        "server_status": told["server"]["status"],
                    },
                )

    def _version(self) -> int:
        manager = self._manager()
        return manager.changed.version if manager is not None else -1

    async def _change(self, seen: int) -> bool:
        """Wait for a change after `seen`; give False when there was none for silence_s."""
        try:
            async with asyncio.timeout(self._silence_s):
                while (manager := self._manager()) is None and not self._closed.is_set():
                    await asyncio.sleep(LOOK_S)
                if manager is not None and seen >= 0 and not self._closed.is_set():
                    await manager.changed.newer(seen)
        except TimeoutError:
            return False
        return True

    async def metrics(self) -> AsyncGenerator[bytes, None]:
        """Give `metrics` every two seconds, a `heartbeat` every silence_s, and `shutdown` at the end."""
        manager = self._manager()
        beat_s = self._clock.monotonic_s()
        while manager is not None and not self._closed.is_set() and manager.server_status != "shutting_down":
            yield event("metrics", snapshot(manager, self._clock.now_s()))
            if self._clock.monotonic_s() - beat_s >= self._silence_s:
                beat_s = self._clock.monotonic_s()
                yield event("heartbeat", {"timestamp": format_rfc3339(self._clock.now_s())})
            try:
                await asyncio.wait_for(self._closed.wait(), self._every_s)
            except TimeoutError:
                continue
        yield event("shutdown", {"message": "Server shutting down"})


def _differences(told: dict[str, Any], now: dict[str, Any]) -> list[bytes]:
    """Give the events that lead from what was told to what is now. A model that left the table is told as `unknown`."""
    news = [
        event("model_update", model)
        for alias, model in now["models"].items()
        if model != told["models"].get(alias)
    ]
    news += [
        event("model_update", {**model, "status": "unknown"})
        for alias, model in told["models"].items()
        if alias not in now["models"]
    ]
    if now["server"] != told["server"]:
        news.append(event("server_update", now["server"]))
    return news


async def loading(
    manager: ModelManagerApi, alias: str, keep_alive_s: float | None
) -> AsyncGenerator[bytes, None]:
    """Load a model, and give a `model_update` for each change of it until it is ready. Closing it gives the load up.

    Raises  what Board.load raises, after the last `model_update`
    """
    waiting = asyncio.ensure_future(manager.load(alias, keep_alive_s=keep_alive_s))  # noqa: TID251 - awaited or cancelled here
    told: dict[str, Any] | None = None
    try:
        while True:
            seen, is_over = manager.changed.version, waiting.done()
            model = as_model(manager.model(alias))
            if model != told:
                told = model
                yield event("model_update", model)
            if is_over:
                break
            await _either(waiting, manager, seen)
        waiting.result()
    finally:
        if not waiting.done():
            waiting.cancel()
            await asyncio.wait({waiting})


async def _either(waiting: "asyncio.Future[Any]", manager: ModelManagerApi, seen: int) -> None:
    """Wait for the load's end or for a change, whichever comes first."""
    change = asyncio.ensure_future(manager.changed.newer(seen))  # noqa: TID251 - cancelled here
    try:
        await asyncio.wait({waiting, change}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        change.cancel()
