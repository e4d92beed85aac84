"""The two feeds about models, as server-sent events: status on change, and metrics every two seconds.

A client is sent the latest state, not every intermediate one. Nothing is queued, so a slow client takes no
memory. For compatibility, see docs/compatibility.md.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import Any

from appliance.base.clock import Clock, format_rfc3339
from appliance.front.manager.snapshot import snapshot
from appliance.front.pipeline.sse import render_event
from appliance.models.status.objects import as_model, as_status, before_manager
from appliance.models.status.views import ModelManagerApi

SILENCE_S = 30.0  # after this time without an event a heartbeat is sent
EVERY_S = 2.0  # between two `metrics` events
GATHER_S = 0.05  # changes within this time are sent together
POLL_S = 0.2  # how often the manager is looked for until it exists


class StatusFeeds:
    """Makes feeds; `close` ends all of them.

    Args:
        manager: Returns the manager; None while there is none yet.
        silence_s: Seconds without an event after which a heartbeat is sent, above 0.
        every_s: Seconds between two `metrics` events, above 0.

    Attributes:
        closed: Set when all feeds end.
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
        self.closed = asyncio.Event()

    def close(self) -> None:
        """End every feed now: its last event says that the server is shutting down."""
        self.closed.set()
        if (manager := self._manager()) is not None:
            manager.changed.set(manager.changed.value + 1)  # wakes those that wait for a change

    def now(self) -> dict[str, Any]:
        """Return the full status now, also before there is a manager."""
        manager = self._manager()
        status = as_status(manager) if manager is not None else before_manager(self._began_s)
        if self.closed.is_set():
            status["server"]["status"] = "shutting_down"
        return status

    async def status(self) -> AsyncGenerator[bytes, None]:
        """Yield the status and its changes, until the server_update that says shutting_down.

        Yields:
            `full_status` first, then `model_update` (one model) and `server_update` (`{status, started_at,
            updated_at}`) on change, `heartbeat` (`{timestamp, server_status}`) after silence_s without an
            event.
        """
        sent = self.now()
        yield render_event("full_status", sent)
        while sent["server"]["status"] != "shutting_down":
            seen = self._version()
            now = self.now()
            updates = _differences(sent, now)
            sent = now
            for piece in updates:
                yield piece
            if updates:
                await asyncio.sleep(GATHER_S)
            elif not await self._wait_change(seen):
                yield render_event(
                    "heartbeat",
                    {
                        "timestamp": format_rfc3339(self._clock.now_s()),
                        "server_status": sent["server"]["status"],
                    },
                )

    def _version(self) -> int:
        manager = self._manager()
        return manager.changed.version if manager is not None else -1

    async def _wait_change(self, seen: int) -> bool:
        """Wait for a change after version `seen`; return False when there was none for silence_s."""
        try:
            async with asyncio.timeout(self._silence_s):
                while (manager := self._manager()) is None and not self.closed.is_set():
                    await asyncio.sleep(POLL_S)
                if manager is not None and seen >= 0 and not self.closed.is_set():
                    await manager.changed.newer(seen)
        except TimeoutError:
            return False
        return True

    async def metrics(self) -> AsyncGenerator[bytes, None]:
        """Yield `metrics` every every_s, a `heartbeat` every silence_s, and `shutdown` at the end."""
        manager = self._manager()
        beat_s = self._clock.monotonic_s()
        while manager is not None and not self.closed.is_set() and manager.server_status != "shutting_down":
            yield render_event("metrics", snapshot(manager, self._clock.now_s()))
            if self._clock.monotonic_s() - beat_s >= self._silence_s:
                beat_s = self._clock.monotonic_s()
                yield render_event("heartbeat", {"timestamp": format_rfc3339(self._clock.now_s())})
            try:
                await asyncio.wait_for(self.closed.wait(), self._every_s)
            except TimeoutError:
                continue
        yield render_event("shutdown", {"message": "Server shutting down"})


def _differences(former: dict[str, Any], now: dict[str, Any]) -> list[bytes]:
    """Return the events from the former status to the present one.

    A model that left the table becomes `unknown`.
    """
    updates = [
        render_event("model_update", model)
        for alias, model in now["models"].items()
        if model != former["models"].get(alias)
    ]
    updates += [
        render_event("model_update", {**model, "status": "unknown"})
        for alias, model in former["models"].items()
        if alias not in now["models"]
    ]
    if now["server"] != former["server"]:
        updates.append(render_event("server_update", now["server"]))
    return updates


async def load_events(
    manager: ModelManagerApi, alias: str, keep_alive_s: float | None
) -> AsyncGenerator[bytes, None]:
    """Load a model; yield a `model_update` for each change of it until it is ready.

    Closing it cancels the load.

    Raises:
        ApplianceError: What ModelManagerApi.load raises, after the last `model_update`.
    """
    load = manager.load(alias, keep_alive_s=keep_alive_s)
    waiting = asyncio.ensure_future(load)  # noqa: TID251 - awaited or cancelled below
    sent: dict[str, Any] | None = None
    try:
        while True:
            seen, is_over = manager.changed.version, waiting.done()
            model = as_model(manager.model(alias))
            if model != sent:
                sent = model
                yield render_event("model_update", model)
            if is_over:
                break
            await _wait_either(waiting, manager, seen)
        waiting.result()
    finally:
        if not waiting.done():
            waiting.cancel()
            await asyncio.wait({waiting})
        if not waiting.cancelled():
            waiting.exception()  # else asyncio logs that it was never retrieved


async def _wait_either(waiting: "asyncio.Future[Any]", manager: ModelManagerApi, seen: int) -> None:
    """Wait for the end of the load or for a change, whichever is first."""
    change = asyncio.ensure_future(manager.changed.newer(seen))  # noqa: TID251 - cancelled here
    try:
        await asyncio.wait({waiting, change}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        change.cancel()
