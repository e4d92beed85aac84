"""The feed about models from `model_status.json`, for a process beside the appliance: `status_server.py`."""

import asyncio
from pathlib import Path
from typing import Any

from appliance.base import jsons
from appliance.base.clock import Clock
from appliance.front.manager.feeds import POLL_S, SILENCE_S, StatusFeeds
from appliance.models.status.objects import before_manager, summary_of

MAX_BYTES = 16 << 20


class StatusFileFeeds(StatusFeeds):
    """Makes feeds of what the file holds; while it is missing or damaged, the server counts as initializing.

    Args:
        path: The file.
        clock: The time of events.
        silence_s: Seconds without an event after which a heartbeat is sent, above 0.
    """

    def __init__(self, path: Path, *, clock: Clock, silence_s: float = SILENCE_S) -> None:
        super().__init__(lambda: None, clock=clock, silence_s=silence_s)
        self._path = path
        self._read: tuple[int, dict[str, Any] | None] = (-1, None)

    def now(self) -> dict[str, Any]:
        """Return the full status that the file holds now."""
        value = self._value()
        if value is None:
            status = before_manager(self._began_s)
        else:
            models: dict[str, dict[str, Any]] = value["models"]
            status = {"server": dict(value["server"]), "models": models, "summary": summary_of(models)}
        if self.closed.is_set():
            status["server"]["status"] = "shutting_down"
        return status

    def _value(self) -> dict[str, Any] | None:
        """Return what the file holds, read again where it has changed; None = it is missing or damaged."""
        version = self._version()
        if version != self._read[0]:
            self._read = (version, self._parsed() if version >= 0 else None)
        return self._read[1]

    def _parsed(self) -> dict[str, Any] | None:
        try:
            with self._path.open("rb") as file:
                value = jsons.loads(file.read(MAX_BYTES))
        except (OSError, ValueError):
            return None
        rows = (value.get("server"), value.get("models")) if isinstance(value, dict) else (None, None)
        parts = [rows[0], *(rows[1].values() if isinstance(rows[1], dict) else [None])]
        is_whole = all(isinstance(part, dict) and isinstance(part.get("status"), str) for part in parts)
        return value if is_whole else None

    def _version(self) -> int:
        """Return the time of the file's last change in nanoseconds since 1970; -1 = it is missing."""
        try:
            return self._path.stat().st_mtime_ns
        except OSError:
            return -1

    async def _wait_change(self, seen: int) -> bool:
        """Wait until the file has changed; return False when it had not for silence_s."""
        try:
            async with asyncio.timeout(self._silence_s):
                while self._version() == seen and not self.closed.is_set():
                    await asyncio.sleep(POLL_S)
        except TimeoutError:
            return False
        return True
