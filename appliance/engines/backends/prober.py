"""Looking at servers: one loop per server, beside the requests and never on their path.

A look asks for health and load at the same time. Its rhythm is jittered, so that many appliances do not ask in step; a failure
seen by a request brings the next look forward. What a server serves is asked for when it becomes ready, and now and then after.
"""

import asyncio
import random

from appliance.base.errors import ApplianceError
from appliance.base.logs import get_logger
from appliance.base.wire.types import UpstreamTimeout, WireError
from appliance.engines.backends.server import EngineServer
from appliance.engines.backends.server_state import ScrapedPage
from appliance.engines.dialects.contract import Dialect, EngineHealth, QueryReply
from appliance.engines.dialects.table import DIALECTS
from appliance.engines.metrics.values import BadMetrics, gauge

log = get_logger("health")
METRICS_S = 5.0  # seconds for a metrics page
LEARN_EVERY_LOOKS = 10
SUSPICION_S = 0.2  # the first look after a suspicion comes so soon; then twice as late each time, up to the usual rhythm
STARTING_S = 0.5  # rhythm while it is starting
JITTER = 0.2


class HealthProber:
    """Looks at one server for as long as `run` runs."""

    def __init__(self, server: EngineServer) -> None:
        self._server = server
        self._now = asyncio.Event()
        self._first = asyncio.Event()
        self._looks = 0
        self._hurried = 0
        server.on_suspicion = self.probe_soon

    def probe_soon(self) -> None:
        """A request failed: look soon."""
        self._now.set()

    async def wait_first_probe(self) -> None:
        """Wait until the first look is over."""
        await self._first.wait()

    async def run(self) -> None:
        """Look again and again, until cancelled. A mistake of ours in a look is logged; the looks go on."""
        while True:
            try:
                await self.probe()
            except Exception as exc:
                log.exception("look_failed", backend=self._server.name, error=repr(exc))
            self._first.set()
            await self._pause()

    async def _pause(self) -> None:
        """Wait for the next look: the usual rhythm, or sooner after a suspicion and while the server starts."""
        server = self._server
        rhythm = server.settings.metrics_cache_ttl_seconds
        if not server.health.is_ready:
            self._hurried = min(self._hurried + 1, 16)
            rhythm = min(rhythm, SUSPICION_S * 2**self._hurried if server.is_lost else STARTING_S)
        else:
            self._hurried = 0
        pause_s = rhythm * random.uniform(1 - JITTER, 1 + JITTER)
        try:
            await asyncio.wait_for(self._now.wait(), pause_s)
        except TimeoutError:
            pass
        else:
            self._now.clear()
            await asyncio.sleep(
                min(SUSPICION_S, pause_s) * random.uniform(0.1, 1)
            )  # many failures at once are one suspicion

    async def probe(self) -> None:
        """Look once: its kind if that is not known, health and load together, its models when due."""
        server = self._server
        if server.dialect is None and not await self._recognise():
            return
        dialect = server.dialect
        assert dialect is not None
        health, _ = await asyncio.gather(self._health(dialect), self._load(dialect))
        was_ready = server.health.is_ready
        is_timeout = health is None
        if server.update_health(
            health or EngineHealth(False, detail="/health did not answer in time"), is_timeout=is_timeout
        ):
            count = server.fail_waiting()
            if count:
                log.warning("requests_moved", backend=server.name, count=count)
        self._looks += 1
        if server.health.is_ready and (
            not was_ready
            or not server.has_facts
            or not server.facts_are_current
            or self._looks % LEARN_EVERY_LOOKS == 0
        ):
            await self._learn(dialect)
        server.on_capacity(server)  # limits, slow start and rest times move with the clock

    async def _recognise(self) -> bool:
        """Find out which engine it is; until then it is starting."""
        server = self._server
        try:
            for dialect in DIALECTS.values():
                if await dialect.matches(server.client):
                    server.dialect = dialect
                    log.info("backend_recognised", backend=server.name, kind=dialect.kind)
                    return True
            detail = "it answers, but not like any engine that is known"
        except (ApplianceError, ValueError) as exc:
            detail = str(exc)
        server.update_health(EngineHealth(False, detail=detail))
        return False

    async def _health(self, dialect: Dialect) -> EngineHealth | None:
        """Give its health; None = it did not answer in time."""
        try:
            return await dialect.probe_health(self._server.client)
        except UpstreamTimeout:
            return None
        except WireError as exc:
            return EngineHealth(False, detail=str(exc))

    async def _load(self, dialect: Dialect) -> None:
        """Read its metrics; a page that is missing or makes no sense leaves the decision to health and our own counts."""
        server = self._server
        if not dialect.running_metrics:
            return
        try:
            reply: QueryReply = await server.client.get("/metrics", METRICS_S)
            if reply.status != 200:
                server.update_page(None)
                server.update_load(
                    None, None, "off" if reply.status in {404, 501} else f"/metrics answered {reply.status}"
                )
                return
            server.update_page(ScrapedPage(reply.body, "openmetrics" in reply.content_type, server.now_s()))
            running, waiting = (
                gauge(reply.body, dialect.running_metrics),
                gauge(reply.body, dialect.waiting_metrics),
            )
            note = "ok" if running is not None else f"/metrics has no {dialect.running_metrics[0]}"
            server.update_load(running, waiting, note)
        except BadMetrics as exc:
            server.update_load(None, None, str(exc))
        except WireError as exc:
            server.update_page(None)
            server.update_load(None, None, str(exc))

    async def _learn(self, dialect: Dialect) -> None:
        server = self._server
        version = server.adapters.version
        try:
            learned = await dialect.read_facts(server.client)
            if (
                server.adapters.version == version
            ):  # else an adapter came or went meanwhile, and this may be from before
                server.update_facts(learned)
        except (WireError, ValueError) as exc:
            log.warning("backend_not_learned", backend=server.name, why=str(exc)[:200])
