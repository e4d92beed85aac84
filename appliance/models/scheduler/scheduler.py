"""What must happen next: serve, start, stop, drain, resume, refuse, or wait.

Decisions only: no I/O, no clock; the manager acts and asks again.

Few models can be loaded at a time (by count, and by memory on each device), and more are wanted. No running
request is ever cut off to load another model. While a model loads it serves no request, so the requests for a
loaded model are served together before it is unloaded for another:

  - A busy model continues until the queue that needs its memory is due (`due_after_s`), at most
    SchedulerRules.extra_wait_s. Then it is drained: running requests end, new ones wait for its next turn.
  - An idle model is unloaded at once, unless it is requested so often that it is better to wait a moment
    (`linger_s`).
  - A model that was just loaded stays for a while whatever waits (`min_stay_s`), else two due queues would
    only swap.

Models that are never loaded together (groups of the table) are unloaded for each other as for memory: all of
them, however much is free.

Of the models that could be unloaded, the one with the least loss is unloaded first: how often it is
requested, times how long it takes to load. Loads on one device follow each other, and nothing is unloaded for
a load that could not begin yet. Memory that is freed for one queue is reserved for it.

The values are in state.py, memory in fit.py; the constants were chosen by bench/swaps.py, see
docs/scheduling.md.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from appliance.models.scheduler.fit import Reservation, find_devices, max_available_bytes, pick_evicted
from appliance.models.scheduler.state import (
    Drain,
    ModelFacts,
    QueueState,
    Refuse,
    ResidentRunner,
    Resume,
    SchedulerRules,
    SchedulerState,
    Serve,
    Start,
    Step,
    Stop,
    Wait,
)

DOES_NOT_FIT = "it does not fit beside the loaded models"
OTHER_LOADS_FIRST = "another model is being loaded"
SLOTS_BUSY = "all its slots are busy"
MEMORY_IS_FREED = "memory is being freed for it"
RETRY_LATER = "its latest load failed, and the next one is tried after a pause"
DUE_COSTS = 2.0  # a queue is due when it has waited so many times what the swap costs
STAY_LOADS = 2.0  # a loaded model stays at least so many times what its loading took, while it has work
# An idle model is kept for so much of what a swap costs, if it is likely to be requested within that time.
LINGER_COSTS = 0.2
PRIORITY_PATIENCE = {0: 0.5, 1: 1.0, 2: 2.0}  # high, normal, low: how much sooner or later a queue is due


class SlotHolder(Protocol):
    """The part of a llama-server's state that decides whether it can take a request."""

    @property
    def serial(self) -> int:
        """Its number."""
        ...

    @property
    def phase(self) -> str:
        """`loading`, `ready` or `stopping`."""
        ...

    @property
    def slots(self) -> int:
        """How many requests it serves at a time."""
        ...

    @property
    def active(self) -> int:
        """How many of them run."""
        ...

    @property
    def is_draining(self) -> bool:
        """Whether it gets no more requests."""
        ...


H = TypeVar("H", bound=SlotHolder)


def pick_free(runners: Iterable[H]) -> H | None:
    """Return the llama-server for a request: the least busy that is ready and not draining.

    None = no slot is free.
    """
    best: H | None = None
    best_score = (0.0, 0)
    for one in runners:
        if one.phase == "ready" and not one.is_draining and one.active < one.slots:
            score = (one.active / one.slots, one.serial)
            if best is None or score < best_score:
                best, best_score = one, score
    return best


def next_step(state: SchedulerState) -> Step:
    """Say what must happen first.

    1. a request waits whose model has a free slot             → Serve
    2. a client waits for a model that has failed              → Refuse
    3. an idle llama-server has expired                        → Stop
    4. one is draining, and no other model needs its memory    → Resume
    5. a client waits for a model that is not loaded           → Start, Stop, Drain or Refuse for the most
                                                                 urgent queue: see _Plan.make_place
    6. none of these                                           → Wait
    """
    plan = _Plan(state)
    for queue in state.queues:
        free = pick_free(plan.by_alias.get(queue.alias, ())) if queue.requests else None
        if free is not None:  # 1
            return Serve(queue.alias, free.serial)
        if state.facts[queue.alias].is_failed:  # 2
            return Refuse(queue.alias, "failed")
    for one in state.residents:  # 3
        if one.expires_in_s is not None and plan.may_expire(one):
            if one.expires_in_s <= 0:
                return Stop(one.serial, "idle")
            plan.times_s.append(one.expires_in_s)
    step = plan.step_of_queues()
    for one in state.residents:  # 4
        if one.is_draining and one.phase == "ready" and not plan.is_needed(one):
            return Resume(one.serial)
    if step is not None:  # 5
        return step
    return Wait(min(plan.times_s) if plan.times_s else None, plan.reasons)  # 6


def due_after_s(queue: QueueState, cost_s: float, rules: SchedulerRules) -> float:
    """Return the wait after which busy models are drained for this queue, for a swap that costs `cost_s`."""
    return min(rules.extra_wait_s, DUE_COSTS * cost_s * PRIORITY_PATIENCE[queue.priority])


def min_stay_s(one: ResidentRunner, rules: SchedulerRules) -> float:
    """Return how long a model that was just loaded stays while it has work."""
    return min(rules.extra_wait_s, STAY_LOADS * one.load_s)


def linger_s(one: ResidentRunner, cost_s: float, rules: SchedulerRules) -> float:
    """Return how much longer an idle model is kept, although unloading it for a swap costs only `cost_s`.

    It is kept for a part of that cost after its last request, if it is requested so often that a request is
    likely within that time.
    """
    longest_s = min(LINGER_COSTS * cost_s, rules.extra_wait_s)
    if one.is_draining or one.demand * longest_s < 1.0:
        return 0.0
    return max(0.0, longest_s - one.idle_s)


def eviction_loss(one: ResidentRunner) -> float:
    """Return the seconds of loading a second that are expected from unloading it."""
    return one.demand * one.load_s


def counted_wait_s(queue: QueueState) -> float:
    """Return the part of a queue's wait that counts: since the end of its model's last turn.

    Else a model with more requests than it can serve would be due again at once, before all others.
    """
    return min(queue.oldest_s, queue.since_eviction_s)


@dataclass(slots=True)
class _Plan:
    """One decision: the findings while the queues are examined.

    times_s       seconds after which time alone may change the decision
    reasons       by model, what its queue waits for
    reservations  memory that is kept for the queues examined so far
    loading       devices on which something is being loaded, or will be next
    is_short      a model that is not loaded at all did not fit
    """

    state: SchedulerState
    by_alias: dict[str, list[ResidentRunner]] = field(default_factory=dict)
    waiting: set[str] = field(default_factory=set)
    times_s: list[float] = field(default_factory=list)
    reasons: dict[str, str] = field(default_factory=dict)
    reservations: list[Reservation] = field(default_factory=list)
    loading: set[int] = field(default_factory=set)
    is_short: bool = False

    def __post_init__(self) -> None:
        for one in self.state.residents:
            self.by_alias.setdefault(one.alias, []).append(one)
            if one.phase == "loading":
                self.loading |= set(one.memory)
        self.waiting = {queue.alias for queue in self.state.queues}

    def may_expire(self, one: ResidentRunner) -> bool:
        """Whether a llama-server may be unloaded for being idle."""
        is_idle = one.phase == "ready" and not one.active and one.alias not in self.waiting
        return is_idle and not one.is_pinned

    def is_needed(self, one: ResidentRunner) -> bool:
        """Whether its memory is reserved for another model."""
        return any(one.serial in kept.serials for kept in self.reservations)

    def step_of_queues(self) -> Step | None:
        """Return the step of the most urgent queue that has one; None = there is none.

        The queues after it are examined only to see which draining llama-servers they still need.
        """
        step: Step | None = None
        is_draining = any(one.is_draining and one.phase == "ready" for one in self.state.residents)
        for queue in sorted(self.state.queues, key=self._urgency):
            found, reason = self._step_of(queue)
            self.reasons[queue.alias] = reason
            step = step or found
            if step is not None and not is_draining:
                break
        return step

    def _urgency(self, queue: QueueState) -> tuple[bool, bool, float, int]:
        """Order queues: replicas last, with a reservation first; then by priority and age, then by length."""
        is_replica = any(one.phase != "stopping" for one in self.by_alias.get(queue.alias, ()))
        return (
            is_replica,
            not queue.has_reservation,
            queue.priority - counted_wait_s(queue) / self.state.rules.ageing_s,
            -(queue.requests + queue.loads),
        )

    def _step_of(self, queue: QueueState) -> tuple[Step | None, str]:
        facts = self.state.facts[queue.alias]
        own = [one for one in self.by_alias.get(queue.alias, ()) if one.phase != "stopping"]
        reason = _why_nothing_is_needed(queue, facts, own)
        if reason:
            return None, reason
        if facts.blocked_s > 0:
            self.times_s.append(facts.blocked_s)
            return None, RETRY_LATER
        if own and self.is_short:
            return None, f"{SLOTS_BUSY}, and other models wait for memory"
        return self.make_place(queue, facts, own)

    def make_place(
        self, queue: QueueState, facts: ModelFacts, own: list[ResidentRunner]
    ) -> tuple[Step | None, str]:
        """Say how one more llama-server can be loaded, as (step or None, what the queue waits for).

        1. it fits                                               → Start, once no other load runs there
        2. it would be a further replica, or may not evict       → waits
        3. it would not fit even alone                           → Refuse, or waits: see _without_place
        4. it would fit, but the memory is reserved for others   → waits
        5. it is better to wait (see _better_wait_s)             → waits
        6. what is being stopped will suffice                    → waits
        7. the load could not begin yet                          → waits
        8. busy llama-servers must be unloaded                   → Drain, once all have stayed long enough
        9. idle ones suffice                                     → Stop
        """
        devices = find_devices(facts, self.state, reservations=self.reservations)
        if devices is not None:  # 1
            has_to_wait = self._reserve(facts, devices)
            return (None, OTHER_LOADS_FIRST) if has_to_wait else (Start(queue.alias, devices), "")
        if own:  # 2
            return None, SLOTS_BUSY
        if not queue.may_evict:
            return None, DOES_NOT_FIT
        self.is_short = True
        evicted = self._pick_evicted(facts, self.reservations)
        if evicted is None:
            return self._without_place(queue, facts)  # 3, 4
        victims = [one for one in evicted if one.phase != "stopping"]
        busy = [one for one in victims if self._is_busy(one)]
        wait_s = self._better_wait_s(queue, facts, victims, busy)
        if wait_s > 0:  # 5
            self.times_s.append(wait_s)
            return (
                None,
                f"{_names(victims)} {'is in use' if busy else 'is likely to be requested again soon'}",
            )
        has_to_wait = self._reserve_after(facts, evicted, is_next=not busy)
        if not victims:  # 6
            return None, MEMORY_IS_FREED
        if has_to_wait:  # 7
            return None, OTHER_LOADS_FIRST
        if busy:  # 8
            return self._drain(queue, busy)
        return Stop(victims[0].serial, "evicted", queue.alias), ""  # 9

    def _drain(self, queue: QueueState, busy: list[ResidentRunner]) -> tuple[Step | None, str]:
        """Drain all of them together; else one would be idle for as long as another stays."""
        if any(one.phase == "loading" for one in busy):
            return None, f"{_names(busy)} is being loaded"
        open_ones = [one for one in busy if not one.is_draining]
        left_s = max((self._stays_s(one) for one in open_ones), default=0.0)
        if left_s > 0:
            self.times_s.append(left_s)
            return None, f"{_names(busy)} was just loaded"
        if open_ones:
            return Drain(open_ones[0].serial, queue.alias), ""
        return None, f"{_names(busy)} finishes its running requests"

    def _without_place(self, queue: QueueState, facts: ModelFacts) -> tuple[Step | None, str]:
        """Say what is done where a model fits nowhere, whatever is unloaded.

        1. it would fit without the reservations         → waits for the model that comes first
        2. a llama-server stops                          → waits: it may leave more than is known
        3. pinned models are as many as may be loaded    → Refuse
        4. one of them is never loaded beside it         → Refuse
        5. else memory does not suffice                  → Refuse
        """
        if find_devices(facts, self.state) is not None or self._pick_evicted(facts, []) is not None:  # 1
            return None, f"{self.reservations[0].alias} is loaded first"
        if any(one.phase == "stopping" for one in self.state.residents):  # 2
            return None, MEMORY_IS_FREED
        rules = self.state.rules
        pinned = {one.alias for one in self.state.residents if one.is_pinned}
        if len(pinned) >= rules.max_models:  # 3
            return Refuse(queue.alias, "pinned"), ""
        if pinned & self.state.conflicts.get(queue.alias, frozenset()):  # 4
            return Refuse(queue.alias, "group"), ""
        need_bytes = facts.need_bytes + rules.margin_bytes
        return Refuse(queue.alias, "memory", need_bytes, max_available_bytes(facts, self.state)), ""  # 5

    def _pick_evicted(
        self, facts: ModelFacts, reservations: list[Reservation]
    ) -> list[ResidentRunner] | None:
        """Choose what is unloaded for a model (see _rank).

        One that suffices alone is taken before several, if no more is lost by it.
        """
        reserved = {serial for kept in reservations for serial in kept.serials}
        order = sorted(
            (
                one
                for one in self.state.residents
                if one.serial not in reserved
                and (one.phase == "stopping" or not (one.is_pinned or one.alias == facts.alias))
            ),
            key=lambda one: self._rank(one, facts),
        )
        best = pick_evicted(facts, self.state, order, reservations)
        if best is None or len(best) < 2:
            return best
        level, lost = max(self._level(one, facts) for one in best), sum(map(self._loss, best))
        for one in order:
            if (self._level(one, facts), self._loss(one)) <= (level, lost) and find_devices(
                facts, self.state, removed=(one.serial,), reservations=reservations
            ) is not None:
                return [one]
        return best

    def _rank(self, one: ResidentRunner, facts: ModelFacts) -> tuple[int, float, float]:
        """Order what is unloaded: by level, then the least loss first, then the longest idle."""
        return self._level(one, facts), self._loss(one), -one.idle_s

    def _level(self, one: ResidentRunner, facts: ModelFacts) -> int:
        """Say how hard it is to unload a llama-server.

        0. it stops already
        1. it is idle
        2. it drains already
        3. it is idle, but likely to be requested again soon
        4. it is busy
        5. it was just loaded
        6. it is being loaded
        """
        if one.phase == "stopping":
            return 0
        if not self._is_busy(one):
            return 1 if linger_s(one, facts.load_s + one.load_s, self.state.rules) <= 0 else 3
        if one.is_draining:
            return 2
        if one.phase == "ready":
            return 4 if self._stays_s(one) <= 0 else 5
        return 6

    def _loss(self, one: ResidentRunner) -> float:
        """Return the loss by one replica: all replicas share it. One that stops already costs nothing."""
        if one.phase == "stopping":
            return 0.0
        return eviction_loss(one) / sum(other.phase != "stopping" for other in self.by_alias[one.alias])

    def _is_busy(self, one: ResidentRunner) -> bool:
        """Whether it has work: running requests, its own load, or a queue that it serves."""
        serves_queue = one.alias in self.waiting and not one.is_draining
        return one.phase == "loading" or bool(one.active) or serves_queue

    def _stays_s(self, one: ResidentRunner) -> float:
        return min_stay_s(one, self.state.rules) - one.ready_s

    def _better_wait_s(
        self, queue: QueueState, facts: ModelFacts, victims: list[ResidentRunner], busy: list[ResidentRunner]
    ) -> float:
        """Return how long it is better to wait than to swap.

        For busy ones until the queue is due, for idle ones until they linger no longer.
        """
        if not victims:
            return 0.0
        rules = self.state.rules
        cost_s = facts.load_s + max(one.load_s for one in victims)
        due_in_s = due_after_s(queue, cost_s, rules) - counted_wait_s(queue)
        return due_in_s if busy else min(due_in_s, max(linger_s(one, cost_s, rules) for one in victims))

    def _reserve(
        self,
        facts: ModelFacts,
        devices: tuple[int, ...],
        serials: tuple[int, ...] = (),
        *,
        is_next: bool = True,
    ) -> bool:
        """Reserve memory for a model, and say whether a load on its devices comes before its own.

        Args:
            facts: The model.
            devices: Where it will be loaded.
            serials: The llama-servers that are removed for it.
            is_next: It will be loaded very soon: other loads on these devices come after it.
        """
        self.reservations.append(Reservation(facts.alias, devices, facts.need_bytes, serials))
        has_to_wait = bool(self.loading & set(devices))
        if is_next:
            self.loading |= set(devices)
        return has_to_wait

    def _reserve_after(self, facts: ModelFacts, evicted: list[ResidentRunner], *, is_next: bool) -> bool:
        serials = tuple(one.serial for one in evicted)
        devices = find_devices(facts, self.state, removed=serials, reservations=self.reservations) or ()
        return self._reserve(facts, devices, serials, is_next=is_next)


def _names(runners: list[ResidentRunner]) -> str:
    return ", ".join(sorted({one.alias for one in runners}))


def _why_nothing_is_needed(queue: QueueState, facts: ModelFacts, own: list[ResidentRunner]) -> str:
    """Say why no load is needed for a queue; "" = one is needed."""
    if any(one.phase == "loading" for one in own):
        return "it is being loaded"
    if any(one.is_draining for one in own):
        return "it was unloaded for another model, and is loaded again later"
    if own and (len(own) >= facts.replicas or not queue.requests):
        return SLOTS_BUSY
    return ""
