"""Probes servers: one loop per server, beside the requests and never in their path.

A probe queries health and load at the same time. Its interval is jittered, so that many appliances do not
probe in step; a failed request brings the next probe forward. The facts of a server (models, limits) are
queried when it becomes ready, and at every FACTS_EVERY_PROBES-th probe.
"""

import asyncio
import math
import random
from collections.abc import Callable

from appliance.base.errors import ApplianceError
from appliance.base.logs import get_logger
from appliance.base.wire.types import UpstreamTimeout, WireError
from appliance.engines.backends.engine_load import ScrapedPage
from appliance.engines.backends.server import EngineServer
from appliance.engines.dialects.contract import Dialect, EngineHealth, SleepingDialect
from appliance.engines.dialects.openai import OpenAi
from appliance.engines.dialects.queries import is_appliance
from appliance.engines.dialects.table import DIALECTS
from appliance.engines.metrics.values import BadMetrics, read_gauge

log = get_logger("health")
METRICS_TIMEOUT_S = 5.0
FACTS_EVERY_PROBES = 10
SUSPICION_S = 0.2  # until the first probe after a failure; doubled each time, up to the usual interval
STARTING_S = 0.5  # interval while the server starts
MAX_DOUBLINGS = 16
JITTER = 0.2
LEARN_EVERY_S = 2.0  # at most, however many clients name unknown models
LOOK_UP_EVERY_S = 5.0


class HealthProber:
    """Probes one server for as long as `run` runs."""

    def __init__(self, server: EngineServer, *, on_capacity: Callable[[], None]) -> None:
        self._server = server
        self._on_capacity = on_capacity
        self._first = asyncio.Event()
        self._probes = 0
        self._unready_pauses = 0
        self._learnt_s = -math.inf  # when its models were last asked for
        self._looked_up_s = -math.inf  # likewise its name

    async def wait_first_probe(self) -> None:
        """Wait until the first probe is over."""
        await self._first.wait()

    async def run(self) -> None:
        """Probe until cancelled. An unexpected exception is logged; the probes continue."""
        while True:
            try:
                await self.probe()
            except Exception as exc:
                log.exception("probe_failed", backend=self._server.name, error=repr(exc))
            self._first.set()
            await self._pause()

    async def _pause(self) -> None:
        """Wait until the next probe is due."""
        pause_s = self._interval_s() * random.uniform(1 - JITTER, 1 + JITTER)
        due = self._server.state.probe_due
        try:
            await asyncio.wait_for(due.wait(), pause_s)
        except TimeoutError:
            return
        due.clear()
        # Many failures at once cause one probe.
        await asyncio.sleep(min(SUSPICION_S, pause_s) * random.uniform(0.1, 1))

    def _interval_s(self) -> float:
        """Return the seconds until the next probe.

        1. ready     → the usual interval
        2. lost      → soon, then doubled each time, up to the usual interval
        3. starting  → half a second
        """
        state = self._server.state
        usual_s = state.settings.metrics_cache_ttl_seconds
        if state.health.is_ready:  # 1
            self._unready_pauses = 0
            return usual_s
        self._unready_pauses = min(self._unready_pauses + 1, MAX_DOUBLINGS)
        if state.is_lost:  # 2
            return min(usual_s, SUSPICION_S * (1 << self._unready_pauses))
        return min(usual_s, STARTING_S)  # 3

    async def probe(self) -> None:
        """Probe once: the kind if it is unknown, health and load together, facts if they are due."""
        server, state = self._server, self._server.state
        await self._look_up_name()
        if state.dialect is None:
            await self._detect()
        dialect = state.dialect
        if dialect is None:
            return
        health, _ = await asyncio.gather(self._query_health(dialect), self._query_load(dialect))
        was_ready = state.health.is_ready
        is_timeout = health is None
        if state.update_health(
            health or EngineHealth(False, detail="/health did not answer in time"), is_timeout=is_timeout
        ):
            count = server.fail_waiting()
            if count:
                log.warning("requests_moved", backend=server.name, count=count)
        self._probes += 1
        if state.health.is_ready and (not was_ready or self._are_facts_due()):
            await self._query_facts(dialect, is_restarted=not was_ready)
        self._on_capacity()  # limits, slow start and open circuits change with time

    async def _look_up_name(self) -> None:
        """Look its name up again: it may have moved to another address."""
        now_s = self._server.state.now_s()
        if now_s - self._looked_up_s >= LOOK_UP_EVERY_S:
            self._looked_up_s = now_s
            await self._server.look_up_name()

    def _are_facts_due(self) -> bool:
        models = self._server.models
        return not models.has_facts or not models.is_current or self._probes % FACTS_EVERY_PROBES == 0

    async def _detect(self) -> None:
        """Detect the kind of engine; until then the server is starting."""
        server, state = self._server, self._server.state
        try:
            for dialect in DIALECTS.values():
                if not await dialect.matches(server.client):
                    continue
                if dialect.kind != OpenAi.kind and await is_appliance(server.client):
                    dialect = DIALECTS[OpenAi.kind]
                state.dialect = dialect
                log.info("backend_detected", backend=server.name, kind=dialect.kind)
                return
            detail = "it answers, but not like a known kind of engine"
        except (ApplianceError, ValueError) as exc:
            detail = str(exc)
        state.update_health(EngineHealth(False, detail=detail))

    async def _query_health(self, dialect: Dialect) -> EngineHealth | None:
        """Return its health; None = it did not reply in time."""
        try:
            return await dialect.probe_health(self._server.client)
        except UpstreamTimeout:
            return None
        except WireError as exc:
            return EngineHealth(False, detail=str(exc))

    async def _query_load(self, dialect: Dialect) -> None:
        """Read its metrics page.

        1. its kind has none                     → only our own counts are used
        2. it cannot be reached                  → no page, no numbers
        3. an error status; 404 and 501 mean off → no page, no numbers
        4. an invalid value                      → the page, no numbers
        5. otherwise                             → the page and its numbers
        """
        server, state = self._server, self._server.state
        if not dialect.running_metrics:  # 1
            return
        try:
            reply = await server.client.get("/metrics", METRICS_TIMEOUT_S)
        except WireError as exc:  # 2
            state.load.page = None
            state.update_load(None, None, str(exc))
            return
        if reply.status != 200:  # 3
            state.load.page = None
            state.update_load(
                None, None, "off" if reply.status in {404, 501} else f"/metrics answered {reply.status}"
            )
            return
        state.load.page = ScrapedPage(reply.body, "openmetrics" in reply.content_type, state.now_s())
        try:
            running = read_gauge(reply.body, dialect.running_metrics)
            waiting = read_gauge(reply.body, dialect.waiting_metrics)
        except BadMetrics as exc:  # 4
            state.update_load(None, None, str(exc))
            return
        note = "ok" if running is not None else f"/metrics has no {dialect.running_metrics[0]}"
        state.update_load(running, waiting, note)  # 5

    async def learn(self) -> None:
        """Ask for its models now, unless that was just done: a client named one that no server has."""
        state = self._server.state
        if state.now_s() - self._learnt_s < LEARN_EVERY_S:
            return
        self._learnt_s = state.now_s()
        if state.dialect is None or not state.health.is_ready:
            await self.probe()  # it may have just come up
        else:
            await self._query_facts(state.dialect)

    async def _query_facts(self, dialect: Dialect, *, is_restarted: bool = False) -> None:
        server = self._server
        self._learnt_s = server.state.now_s()
        models, version = server.models, server.models.adapters.version
        try:
            if isinstance(dialect, SleepingDialect) and models.is_current and not is_restarted:
                facts = await dialect.reread_facts(server.client, models.facts)
            else:
                facts = await dialect.read_facts(server.client)
        except (WireError, ValueError) as exc:
            log.warning("backend_facts_unreadable", backend=server.name, reason=str(exc)[:200])
            return
        if (
            server.models.adapters.version == version
        ):  # else an adapter changed meanwhile: the facts may be older
            server.state.update_facts(facts)
