"""Which sessions other replicas have ended, where sessions are kept in Redis alone (SESSION_MODE=redis)."""

from typing import Final

from appliance.accounts.directory import Directory
from appliance.accounts.session_stores import RedisSessions, SessionsUnavailable
from appliance.base.clock import Clock

POLL_S: Final = 2.0
LOOK_BACK_S: Final = 60.0  # other replicas' clocks may be behind


class EndedSessions:
    """Asks Redis which sessions were ended, and refuses their access tokens."""

    def __init__(
        self, store: RedisSessions, directory: Directory, *, clock: Clock, token_lifetime_s: float
    ) -> None:
        self._store = store
        self._directory = directory
        self._clock = clock
        self._read_until_s = clock.now_s() - token_lifetime_s

    async def read(self) -> None:
        """Ask once; where Redis is down, the next call asks for all that is missing."""
        now_s = self._clock.now_s()
        try:
            ids = await self._store.ended_since(round((self._read_until_s - LOOK_BACK_S) * 1000))
        except SessionsUnavailable:
            return
        self._directory.note_ended(ids)
        self._read_until_s = now_s
