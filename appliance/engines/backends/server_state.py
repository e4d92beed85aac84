"""What is known of one server of an engine: what it serves, its health, its load, and so whether it can take a request.

It comes from three sides: looks at its health and metrics (health.py, in the background), the requests that we send (counted at once,
and their failures noted), and the operator (drain, limits). A request never waits for a look.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from appliance.base.clock import Clock
from appliance.base.logs import get_logger
from appliance.base.metrics.registry import Metrics
from appliance.engines.backends.adapters import AdapterState
from appliance.engines.backends.breaker import Breaker
from appliance.engines.dialects.contract import Dialect, EngineFacts, EngineHealth
from appliance.engines.dialects.table import AUTO, DIALECTS
from appliance.engines.metrics.families import MEASURING
from appliance.engines.metrics.normalise import EngineExtras
from appliance.engines.outcome import BreakerEffect, Outcome
from appliance.engines.settings import EngineSettings
from appliance.engines.slots import AnySlot, BackendStats
from appliance.engines.specs import BackendSpec
from appliance.engines.types import BackendState, BackendStatus, ModelCard, ServedModel

log = get_logger("backend")
UNKNOWN_SLOTS = 4  # llama.cpp's own default, where it does not tell
FULL_S = 1.0  # a server that said "no room" is left alone so long, unless it said how long
MISSED_LOOKS = (
    2  # looks in a row that time out before a server counts as down; one refused connection is enough
)
STALE_LOOKS = 2  # metrics older than so many looks fade out of the decision, over as many looks again


@dataclass(frozen=True, slots=True)
class ScrapedPage:
    """A server's metrics page as it was seen at `at_s` (monotonic)."""

    raw: bytes
    is_openmetrics: bool
    at_s: float


class ServerState(BackendStats):
    """Our knowledge of a server; server.py adds how it is spoken to."""

    def __init__(
        self,
        spec: BackendSpec,
        *,
        settings: EngineSettings,
        clock: Clock,
        metrics: Metrics,
        origin: str,
    ) -> None:
        super().__init__(
            spec.name, pool=spec.pool, clock=clock, metrics=metrics, weight=spec.effective_weight
        )
        self.spec = spec
        self.origin = origin
        self.settings = settings
        self.dialect: Dialect | None = DIALECTS.get(spec.kind)  # None = not detected yet
        self.breaker = Breaker(settings.breaker_failures, settings.breaker_rest_s)
        self.is_draining = False
        self.on_suspicion: Callable[[], None] = lambda: None  # the health loop's: look now
        self.on_change: Callable[[], None] = lambda: None  # the fleet's: its standing changed
        self.on_models: Callable[[], None] = lambda: None  # the fleet's: the models changed
        self._born_s = clock.monotonic_s()
        # of its health
        self.health = EngineHealth(False, detail="not looked at yet")
        self.is_lost = False  # it was ready once, and is down now
        self.checked_at_s: float | None = None
        self.timeouts_in_a_row = 0
        self._recovered_s: float | None = None
        # of its load
        self.running: float | None = None
        self.waiting: float | None = None
        self.metrics_note = "off"
        self.scraped_page: ScrapedPage | None = None
        self._read_s = -math.inf
        self._others_read = 0.0  # running and waiting, less our own at that moment
        self._ended_since = 0  # our requests that ended since the metrics were read
        self._full_until_s = 0.0
        # of what it serves
        self.facts = EngineFacts({})
        self.has_facts = False
        self.facts_are_current = False  # what was learned is of its present life
        self.adapters = AdapterState()
        self._serves = self._configured()
        self._also: dict[str, ServedModel] = {}  # by their other names

    # ---- what it serves

    @property
    def kind(self) -> str:
        return self.dialect.kind if self.dialect else AUTO

    @property
    def context_tokens(self) -> int:
        return self.facts.context_tokens

    def cards(self) -> list[ModelCard]:
        return [served.card for served in self._serves.values()]

    def find_model(self, model: str) -> ServedModel | None:
        return self._serves.get(model) or self._also.get(model)

    def is_unknown(self) -> bool:
        """Whether its models are not known, because it was not reached yet and none were configured."""
        return not self.has_facts and not self.spec.models

    def update_facts(self, facts: EngineFacts) -> None:
        """Take what it says of itself; a configured list of models stands, and takes from it what it knows of those."""
        were_current, self.facts_are_current = self.facts_are_current, True
        self.facts, self.has_facts = facts, True
        self.adapters.update_from(facts.models)
        if not self.refresh_models() and not were_current:
            self.on_change()

    def refresh_models(self) -> bool:
        """What it serves, or has of adapters, may have changed; give whether it did."""
        former, learned = self._serves, self.facts
        models = self._configured() if self.spec.models or not self.has_facts else learned.models
        if self.spec.models and self.has_facts:
            models = {name: learned.models.get(name, one) for name, one in models.items()}
        self._serves = self.adapters.apply_to(models)
        self._also = {name: served for served in self._serves.values() for name in served.card.aliases}
        if self._serves != former:
            self.on_models()
        return self._serves != former

    def _configured(self) -> dict[str, ServedModel]:
        created = int(self._clock.now_s())
        return {
            name: ServedModel(
                ModelCard(name, created, self.spec.kind if self.spec.kind != AUTO else "backend", name), name
            )
            for name in self.spec.models
        }

    # ---- whether it can take a request

    def limit(self, now_s: float) -> float:
        """Give the most requests that it works on at a time; infinity = the engine decides."""
        most: float = self.spec.max_in_flight or self.settings.max_allowed_request_queue
        if not most:
            most = (self.facts.slots or UNKNOWN_SLOTS) if self.kind == "llamacpp" else math.inf
        if self._recovered_s is not None and math.isfinite(most):
            most = max(1, math.ceil(most * self._ramp(now_s)))
        return most

    def status(self, now_s: float) -> BackendStatus:
        """Say whether a request can be sent at this moment.

        1. the operator drains it                       4. its breaker is open
        2. not ready: starting while in grace, or down  5. at its limit, or making requests wait inside
        3. it said a moment ago that it is full         6. ready
        """
        if self.is_draining:  # 1
            return BackendStatus.DRAINING
        if not self.health.is_ready:  # 2
            is_young = not self.is_lost and now_s - self._born_s < self.settings.backend_startup_grace_s
            return BackendStatus.STARTING if self.health.is_loading or is_young else BackendStatus.DOWN
        if now_s < self._full_until_s:  # 3
            return BackendStatus.FULL
        breaker = self.breaker
        if breaker.open_until_s is not None and (now_s < breaker.open_until_s or breaker.is_probing):  # 4
            return BackendStatus.CIRCUIT_OPEN
        member = self.member
        member.external = others = self._others(now_s)
        if self._recovered_s is not None:
            member.ramp = self._ramp(now_s)
        if member.active + others >= self.limit(now_s):  # 5
            return BackendStatus.FULL
        if (
            self.waiting is not None
            and self.waiting - self._ended_since >= self.settings.max_allowed_deferred
            and self._is_fresh(now_s)
        ):
            return BackendStatus.FULL
        return BackendStatus.READY  # 6

    def _others(self, now_s: float) -> float:
        """Estimate the requests at the server that are not ours: as its metrics had them, fading once they are old."""
        if not self._others_read:
            return 0.0
        look_s = self.settings.metrics_cache_ttl_seconds
        age = (now_s - self._read_s) / look_s - STALE_LOOKS
        if age <= 0:
            return self._others_read
        return max(0.0, self._others_read * (1 - age / STALE_LOOKS))

    def _is_fresh(self, now_s: float) -> bool:
        return now_s - self._read_s < self.settings.metrics_cache_ttl_seconds * STALE_LOOKS

    def _ramp(self, now_s: float) -> float:
        """Slow start: from a tenth of its worth to all of it."""
        assert self._recovered_s is not None
        slow_s = self.settings.slow_start_s
        part = (now_s - self._recovered_s) / slow_s if slow_s else 1.0
        if part >= 1:
            self._recovered_s = None
            self.member.ramp = 1.0
            return 1.0
        return max(0.1, part)

    # ---- what was seen of it

    def update_health(self, health: EngineHealth, *, is_timeout: bool = False) -> bool:
        """Take a look's outcome.

        Takes   is_timeout: it did not answer in time, which counts only when it happens again
        Gives   whether it went from ready to not ready: requests that wait for its answer should go elsewhere
        """
        self.checked_at_s = self._clock.now_s()
        former = self.health
        self.timeouts_in_a_row = self.timeouts_in_a_row + 1 if is_timeout else 0
        if is_timeout and former.is_ready and self.timeouts_in_a_row < MISSED_LOOKS:
            return False
        self.health = health
        if health.is_ready and not former.is_ready:
            if self.is_lost:
                self._recovered_s = self._clock.monotonic_s()
                self.breaker.succeeded()
                log.info("backend_back", backend=self.name)
            else:
                log.info("backend_ready", backend=self.name, kind=self.kind)
            self.is_lost = False
        is_lost_now = former.is_ready and not health.is_ready
        if is_lost_now:
            self.facts_are_current = False
            self.adapters.clear()
            self.refresh_models()
            self.is_lost = not health.is_loading
            log.warning("backend_lost", backend=self.name, why=health.detail)
        if health.is_ready != former.is_ready:
            self.on_change()
            self.on_capacity(self)
        return is_lost_now

    def update_load(self, running: float | None, waiting: float | None, note: str) -> None:
        """Take the engine's own numbers; None where it has none (its own counts then decide)."""
        self.metrics_note = note
        self.running, self.waiting = running, waiting
        if running is None and waiting is None:
            self._others_read = 0.0
            return
        self._read_s = self._clock.monotonic_s()
        self._ended_since = 0
        self._others_read = max(0.0, (running or 0.0) + (waiting or 0.0) - self.member.active)

    def update_page(self, page: ScrapedPage | None) -> None:
        """Keep its metrics page for those who read ours; None: it could not be had."""
        self.scraped_page = page

    def engine_extras(self, kv_usage: float | None) -> EngineExtras:
        """Tell what is known of it beside its page: the cache in use by its slots, and the adapters that it lists."""
        adapters = tuple(name for name, served in self._serves.items() if served.card.parent)
        return EngineExtras(kv_usage, adapters or None, len(adapters), self._clock.now_s())

    def observe_outcome(self, slot: AnySlot, outcome: Outcome, retry_after_s: float | None) -> None:
        """Learn from a request's end: what the breaker thinks, whether a look is due, whether it is full."""
        self._ended_since += 1
        self.adapters.release(slot)
        now_s = self._clock.monotonic_s()
        if outcome is Outcome.OK and (taken := slot.times) is not None:
            receipt = taken.receipt
            self._metrics.latencies.add(
                self.name,
                receipt.served_model,
                queue_s=receipt.queue_ms / 1000,
                whole_s=now_s - slot.started_s,
                first_s=taken.first_s - slot.started_s if taken.first_s else None,
                tokens=taken.tokens(),
            )
        if outcome.breaker is BreakerEffect.SUCCEEDED:
            self.breaker.succeeded()
        elif outcome.breaker is BreakerEffect.NONE:
            self.breaker.abandoned()
            if outcome is Outcome.FULL:
                self._full_until_s = now_s + min(retry_after_s or FULL_S, 60.0)
        else:
            self.breaker.failed(now_s, retry_after_s=retry_after_s)
            if (
                outcome is Outcome.CONNECT and self.health.is_ready
            ):  # nobody listens there: no need to wait for the next look
                self.update_health(EngineHealth(False, detail="connections are refused"))
            self.on_suspicion()

    def probe_soon(self) -> None:
        self.on_suspicion()

    def now_s(self) -> float:
        return self._clock.monotonic_s()

    def report_missing_adapter(self, name: str) -> bool:
        """A request met no adapter where one should be: look what there is. Gives whether it is a declared one."""
        is_declared = self.adapters.report_missing(name)
        self.refresh_models()
        self.facts_are_current = False
        self.on_suspicion()
        return is_declared

    @property
    def measures_latencies(self) -> bool:
        """Whether the times of its answers are taken here: its kind has no histograms, or it has its metrics switched off."""
        return self.kind not in MEASURING or self.metrics_note == "off"

    # ---- telling

    def state(self) -> BackendState:
        now_s = self._clock.monotonic_s()
        standing = self.status(now_s)
        member, breaker = self.member, self.breaker
        limit = self.limit(now_s)
        word = (
            "closed"
            if breaker.open_until_s is None
            else "open"
            if now_s < breaker.open_until_s
            else "half_open"
        )
        detail = {
            BackendStatus.DRAINING: "drained by the operator",
            BackendStatus.CIRCUIT_OPEN: "rested after failures",
            BackendStatus.FULL: "full",
        }.get(standing, "")
        return BackendState(
            self.name,
            self.kind,
            standing in {BackendStatus.READY, BackendStatus.FULL},
            detail or self.health.detail,
            (
                {
                    "url": self.spec.url,
                    "rested_s": round(breaker.wait_s(now_s), 1),
                    "failed_in_a_row": breaker.failed_in_a_row,
                    "last_error": "",
                },
            ),
            tuple(self._serves),
            self.in_flight,
            url=self.spec.url,
            pool=self.pool,
            standing=standing.value,
            running=self.running,
            waiting=self.waiting,
            data_age_s=round(now_s - self._read_s, 3) if math.isfinite(self._read_s) else None,
            metrics=self.metrics_note,
            checked_at_s=self.checked_at_s,
            limit=int(limit) if math.isfinite(limit) else None,
            context_tokens=self.context_tokens,
            weight=member.weight,
            cost=self.spec.cost,
            chosen_total=member.total,
            mean_s=member.mean_s,
            last_s=member.last_s,
            last_used_at_s=member.last_used_s,
            breaker=word,
            errors=tuple(sorted(self.errors.items())),
            origin=self.origin,
        )

    def measure(self) -> None:
        """Bring its gauges up to date; called when metrics are read."""
        state = self.state()
        self._metrics.update_backend(state)
        self._metrics.breaker_open.labels(self.name, self.spec.url).set(0 if state.breaker == "closed" else 1)
