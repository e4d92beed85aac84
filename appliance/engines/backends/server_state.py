"""The state of one server of an engine, which decides whether it can take a request.

It has three sources: probes of health and metrics (prober.py, in the background), the requests (counted at
once, failures included), and the operator (drain, limits). A request never waits for a probe.
"""

import asyncio
import math

from appliance.base.balancing import Member
from appliance.base.clock import Clock
from appliance.base.logs import get_logger
from appliance.engines.backends.breaker import Breaker
from appliance.engines.backends.contract import BackendCallbacks
from appliance.engines.backends.engine_load import EngineLoad
from appliance.engines.backends.served_models import ServedModels
from appliance.engines.dialects.contract import Dialect, EngineFacts, EngineHealth
from appliance.engines.dialects.table import AUTO, DIALECTS
from appliance.engines.outcome import BreakerEffect, Outcome
from appliance.engines.settings import EngineSettings
from appliance.engines.specs import BackendSpec
from appliance.engines.types import BackendStatus

log = get_logger("backend")
UNKNOWN_SLOTS = 4  # llama.cpp's default, if the server does not report its slots
MISSED_PROBES = 2  # time-outs in a row until a server is down; one refused connection is enough
MIN_RAMP = 0.1  # share of its limit and weight with which a server starts slowly


class ServerState:
    """The health, load and limits of one server.

    Attributes:
        dialect: None = its kind is not detected yet.
        health: Of the latest probe.
        is_lost: It was ready once, and is down now.
        checked_at_s: The latest probe, seconds since 1970; None = not probed yet.
        probe_due: Set when the next probe should come soon.
    """

    def __init__(
        self,
        spec: BackendSpec,
        *,
        settings: EngineSettings,
        models: ServedModels,
        member: Member,
        clock: Clock,
        callbacks: BackendCallbacks,
    ) -> None:
        self.settings = settings
        self.dialect: Dialect | None = DIALECTS.get(spec.kind)
        self.breaker = Breaker(settings.breaker_failures, settings.breaker_rest_s)
        self.load = EngineLoad()
        self.is_draining = False
        self.health = EngineHealth(False, detail="not probed yet")
        self.is_lost = False
        self.checked_at_s: float | None = None
        self.probe_due = asyncio.Event()
        self._spec = spec
        self._models = models
        self._member = member
        self._clock = clock
        self._callbacks = callbacks
        self._created_s = clock.monotonic_s()
        self._timeouts_in_a_row = 0
        self._recovered_s: float | None = None  # None = no slow start under way

    @property
    def name(self) -> str:
        """The server's name."""
        return self._spec.name

    @property
    def kind(self) -> str:
        """The kind of engine; `auto` until it is detected."""
        return self.dialect.kind if self.dialect else AUTO

    @property
    def has_slots(self) -> bool:
        """Whether its kind works on a fixed number of requests at a time (see Dialect.has_slots)."""
        return self.dialect is not None and self.dialect.has_slots

    def apply(self, settings: EngineSettings) -> None:
        """Take new settings."""
        self.settings = settings
        self.breaker.max_failures, self.breaker.open_s = settings.breaker_failures, settings.breaker_rest_s

    # ---- whether it can take a request

    def limit(self, now_s: float) -> float:
        """Return how many requests it may work on at a time; infinity = no limit here.

        1. `max_in_flight` of the backend, else MAX_ALLOWED_REQUEST_QUEUE
        2. an engine with slots → as many as it has
        3. otherwise            → no limit
        During slow start it is a share of that.
        """
        most: float = self._spec.max_in_flight or self.settings.max_allowed_request_queue  # 1
        if not most:
            most = (self._models.facts.slots or UNKNOWN_SLOTS) if self.has_slots else math.inf  # 2, 3
        if self._recovered_s is not None and math.isfinite(most):
            most = max(1, math.ceil(most * self._ramp(now_s)))
        return most

    def status(self, now_s: float) -> BackendStatus:
        """Return whether a request can be sent now.

        1. the operator drains it                       4. its circuit is open
        2. not ready: starting while in grace, or down  5. at its limit, or requests wait inside it
        3. it refused a request as full a moment ago    6. ready
        """
        if self.is_draining:  # 1
            return BackendStatus.DRAINING
        if not self.health.is_ready:  # 2
            return self._status_unready(now_s)
        load = self.load
        if now_s < load.full_until_s:  # 3
            return BackendStatus.FULL
        breaker = self.breaker
        if breaker.open_until_s is not None and (now_s < breaker.open_until_s or breaker.is_probing):  # 4
            return BackendStatus.CIRCUIT_OPEN
        member, settings = self._member, self.settings
        external = load.external(now_s, settings.metrics_cache_ttl_seconds) if load.external_read else 0.0
        member.external = external
        if self._recovered_s is not None:
            member.ramp = self._ramp(now_s)
        if member.active + external >= self.limit(now_s):  # 5
            return BackendStatus.FULL
        if load.waiting and load.is_queueing(
            now_s, settings.metrics_cache_ttl_seconds, settings.max_allowed_deferred
        ):
            return BackendStatus.FULL
        return BackendStatus.READY  # 6

    def _status_unready(self, now_s: float) -> BackendStatus:
        is_young = not self.is_lost and now_s - self._created_s < self.settings.backend_startup_grace_s
        return BackendStatus.STARTING if self.health.is_loading or is_young else BackendStatus.DOWN

    def _ramp(self, now_s: float) -> float:
        """Return the share of its limit and weight during slow start: MIN_RAMP to 1."""
        assert self._recovered_s is not None
        slow_s = self.settings.slow_start_s
        part = (now_s - self._recovered_s) / slow_s if slow_s else 1.0
        if part >= 1:
            self._recovered_s = None
            self._member.ramp = 1.0
            return 1.0
        return max(MIN_RAMP, part)

    # ---- updates

    def update_health(self, health: EngineHealth, *, is_timeout: bool = False) -> bool:
        """Take the result of a probe.

        Args:
            health: Of the engine.
            is_timeout: It did not reply in time, which counts only MISSED_PROBES times in a row.

        Returns:
            Whether it went from ready to not ready: requests that wait for its response should be retried
            elsewhere.
        """
        self.checked_at_s = self._clock.now_s()
        former = self.health
        self._timeouts_in_a_row = self._timeouts_in_a_row + 1 if is_timeout else 0
        if is_timeout and former.is_ready and self._timeouts_in_a_row < MISSED_PROBES:
            return False
        self.health = health
        if health.is_ready == former.is_ready:
            return False
        if health.is_ready:
            self._came_up()
        else:
            self._went_down(health)
        self._callbacks.on_change()
        self._callbacks.on_capacity()
        return former.is_ready

    def _came_up(self) -> None:
        if self.is_lost:
            self._recovered_s = self._clock.monotonic_s()
            self.breaker.record_success()
            log.info("backend_recovered", backend=self.name)
        else:
            log.info("backend_ready", backend=self.name, kind=self.kind)
        self.is_lost = False

    def _went_down(self, health: EngineHealth) -> None:
        self._models.invalidate()
        self.refresh_models()
        self.is_lost = not health.is_loading
        log.warning("backend_lost", backend=self.name, reason=health.detail)

    def update_load(self, running: float | None, waiting: float | None, note: str) -> None:
        """Take the engine's own numbers; None = unknown (see EngineLoad.update)."""
        self.load.update(running, waiting, note, own=self._member.active, now_s=self._clock.monotonic_s())

    def update_facts(self, facts: EngineFacts) -> None:
        """Take the facts that the engine reports."""
        was_current = self._models.is_current
        if self._models.update(facts):
            self._callbacks.on_models()
        elif not was_current:
            self._callbacks.on_change()

    def refresh_models(self) -> None:
        """Combine the models again after a change of adapters or facts; report a change."""
        if self._models.refresh():
            self._callbacks.on_models()

    def report_missing_adapter(self, name: str) -> bool:
        """Record that a request did not find its adapter; return whether the adapter is declared."""
        is_declared = self._models.adapters.report_missing(name)
        self.refresh_models()
        self._models.is_current = False
        self.probe_soon()
        return is_declared

    def record(self, outcome: Outcome, retry_after_s: float | None, flow: str = "") -> None:
        """Record the end of a request.

        1. the server succeeded       → its circuit closes
        2. nothing about its health   → another request may probe the circuit; the server may be full
        3. the request or the server is at fault → noted, and probed soon (see Breaker.record_undecided)
        4. the server failed          → counted, and probed soon; if it refused the connection, it is down

        Args:
            outcome: How it ended.
            retry_after_s: Retry-After of the server in seconds; None = it sent none.
            flow: Whose request it was (see RequestOptions.flow).
        """
        self.load.ended_since += 1
        if outcome.breaker is BreakerEffect.SUCCEEDED:  # 1
            self.breaker.record_success()
            return
        now_s = self._clock.monotonic_s()
        if outcome.breaker is BreakerEffect.NONE:  # 2
            self.breaker.release_probe()
            if outcome is Outcome.FULL:
                self.load.mark_full(now_s, retry_after_s)
            elif outcome is Outcome.NOT_FOUND:  # it may have been started again with another model
                self._models.is_current = False
                self.probe_soon()
            return
        if outcome.breaker is BreakerEffect.UNDECIDED:  # 3
            self.breaker.record_undecided(now_s, flow)
            self.probe_soon()
            return
        self.breaker.record_failure(now_s, retry_after_s=retry_after_s)  # 4
        if outcome is Outcome.CONNECT and self.health.is_ready:
            self.update_health(EngineHealth(False, detail="connections are refused"))
        self.probe_soon()

    def confirm_failure(self) -> None:
        """Count an undecided failure: another server answered the same request."""
        self.breaker.record_failure(self._clock.monotonic_s())

    def now_s(self) -> float:
        """Return monotonic seconds."""
        return self._clock.monotonic_s()

    def probe_soon(self) -> None:
        """Bring the next probe forward."""
        self.probe_due.set()

    def detail(self, status: BackendStatus, now_s: float) -> str:
        """Return why it takes no requests; "" = it does."""
        if status is BackendStatus.DRAINING:
            return "drained by the operator"
        if status is BackendStatus.CIRCUIT_OPEN:
            return f"circuit open after failures, retrying in {self.breaker.retry_in_s(now_s):.0f} s"
        return "full" if status is BackendStatus.FULL else self.health.detail
