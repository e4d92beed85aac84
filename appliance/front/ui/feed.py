"""What a page of the web UI follows: one stream, the latest state of each topic, sent when it has changed."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any, Final

from appliance.base import jsons
from appliance.base.clock import Clock
from appliance.front.pipeline.sse import render_event

EVERY_S: Final = 1.0
SILENCE_S: Final = 15.0
Topic = Callable[[], Any]


class Feed:
    """Makes streams; what they show is built once for all pages in each turn.

    Args:
        topics: Topic → returns its present state, ready for JSON; for everyone who may use models.
        operator_topics: The same, for operators alone.
        clock: The time.
        every_s: Seconds between two looks.

    Attributes:
        closed: Set when all streams end.
    """

    def __init__(
        self,
        topics: dict[str, Topic],
        operator_topics: dict[str, Topic],
        *,
        clock: Clock,
        every_s: float = EVERY_S,
    ) -> None:
        self._topics = topics
        self._operator_topics = operator_topics
        self._clock = clock
        self._every_s = every_s
        self._built: dict[str, bytes] = {}
        self._built_s: dict[str, float] = {}
        self.closed = asyncio.Event()

    def close(self) -> None:
        """End every stream: its last event is `bye`."""
        self.closed.set()

    async def stream(self, role_of: Callable[[], Awaitable[str]]) -> AsyncGenerator[bytes, None]:
        """Yield `event: TOPIC` for each topic, again when it has changed, and `heartbeat` after silence.

        Args:
            role_of: Returns the caller's role now: `operator`, `client`, `none` = it may not follow any more.

        Yields:
            Events; the last one is `bye` with `{reason}`: `stopping` or `signed_out`.
        """
        sent: dict[str, bytes] = {}
        said_s = self._clock.monotonic_s()
        while True:
            role = await role_of()
            if role == "none" or self.closed.is_set():
                yield render_event("bye", {"reason": "signed_out" if role == "none" else "stopping"})
                return
            topics = self._topics | (self._operator_topics if role == "operator" else {})
            for name, build in topics.items():
                state = self._state_of(name, build)
                if sent.get(name) != state:
                    sent[name] = state
                    said_s = self._clock.monotonic_s()
                    yield b"event: " + name.encode() + b"\ndata: " + state + b"\n\n"
            if self._clock.monotonic_s() - said_s >= SILENCE_S:
                said_s = self._clock.monotonic_s()
                yield render_event("heartbeat", {})
            try:
                await asyncio.wait_for(self.closed.wait(), self._every_s)
            except TimeoutError:
                continue

    def _state_of(self, name: str, build: Topic) -> bytes:
        """Return a topic's state; one that is young enough is that of the other pages, too."""
        now_s = self._clock.monotonic_s()
        if now_s - self._built_s.get(name, float("-inf")) >= self._every_s / 2:
            self._built[name] = jsons.dumps(build())
            self._built_s[name] = now_s
        return self._built[name]
