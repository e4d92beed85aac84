"""What must happen next: serve, start, stop, close, refuse, or wait. Decisions only: no I/O, no clock; the manager acts and asks again.

A house has few places (by count, and by memory on each device) and more models that are wanted. No running answer is ever cut off to
make room. Loading costs time in which nothing is answered, so requests for a loaded model are served together before it gives way:

    a busy model goes on until the line before it is due (`due_s`), at most Rules.extra_wait_s; then it is closed: what runs ends,
    what comes waits for its next turn
    an idle model gives way at once, unless it is asked so often that it is better to wait for a moment (`lingers_s`)
    a model that was just loaded stays for a while whatever waits (`stay_s`), else two lines that are both due would only swap

Of the models that could give way the one goes first whose loss is least: how often it is asked for, times how long it takes to load.
Loads on one device follow each other, and nobody gives way for a load that could not begin yet. What gives way for one line is kept for it.
The values are in house.py, memory and places in room.py; the constants were chosen by bench/swaps.py, see docs/scheduling.md.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from appliance.models.scheduler.fit import Claim, available_bytes, fitting, leaving
from appliance.models.scheduler.state import (
    Close,
    ModelFacts,
    Open,
    QueueState,
    Refuse,
    ResidentRunner,
    SchedulerRules,
    SchedulerState,
    Serve,
    Start,
    Step,
    Stop,
    Wait,
)

NO_ROOM = "there is no room for it"
LOADS_FIRST = "another model is being loaded"
TURN_COSTS = 2.0  # a line is due when it has waited so many times what the swap costs
STAY_LOADS = 2.0  # a loaded model stays at least so many times what its loading took, while it has work
LINGER_COSTS = (
    0.2  # an idle model is kept for so much of what a swap costs, if it is likely to be asked within that
)
DEMAND_S = 60.0  # requests of so many seconds count as recent
PRIORITY_PATIENCE = {0: 0.5, 1: 1.0, 2: 2.0}  # high, normal, low: how much sooner or later a line is due


def free_slot(residents: Iterable[ResidentRunner]) -> int | None:
    """Give the key of the one that a request of theirs goes to: ready, open, and the least busy; None = none has a free slot."""
    best: tuple[float, int] | None = None
    for one in residents:
        if one.phase == "ready" and not one.is_closed and one.active < one.slots:
            score = (one.active / one.slots, one.key)
            best = score if best is None or score < best else best
    return best[1] if best else None


def next_step(house: SchedulerState) -> Step:
    """Say what must happen first.

    1. somebody waits whose model has a free slot      → Serve
    2. somebody waits for a model that has failed      → Refuse
    3. an idle one's time is over                      → Stop
    4. one is closed, and nobody needs its room        → Open
    5. somebody waits whose model is not loaded        → Start, Stop, Close or Refuse: see _Look.room, the most urgent line first
    6. nothing of it                                   → Wait
    """
    look = _Look(house)
    for line in house.lines:
        key = free_slot(look.by_alias.get(line.alias, ())) if line.requests else None
        if key is not None:  # 1
            return Serve(line.alias, key)
        if house.facts[line.alias].is_failed:  # 2
            return Refuse(line.alias, "failed")
    for one in house.residents:  # 3
        if (
            one.phase == "ready"
            and not one.active
            and one.alias not in look.waiting
            and not one.is_pinned
            and one.stays_s is not None
        ):
            if one.stays_s <= 0:
                return Stop(one.key, "idle")
            look.times.append(one.stays_s)
    step = look.lines()
    for one in house.residents:  # 4
        if one.is_closed and one.phase == "ready" and not look.is_needed(one):
            return Open(one.key)
    if step is not None:  # 5
        return step
    return Wait(min(look.times) if look.times else None, look.reasons)  # 6


def due_s(line: QueueState, cost_s: float, rules: SchedulerRules) -> float:
    """Give the wait after which busy models are closed for this line, for a swap that costs `cost_s`."""
    return min(rules.extra_wait_s, TURN_COSTS * cost_s * PRIORITY_PATIENCE[line.priority])


def stay_s(one: ResidentRunner, rules: SchedulerRules) -> float:
    """Give how long a model that was just loaded stays while it has work."""
    return min(rules.extra_wait_s, STAY_LOADS * one.load_s)


def lingers_s(one: ResidentRunner, cost_s: float, rules: SchedulerRules) -> float:
    """Give how much longer an idle model is better kept than given up for a swap that costs `cost_s`.

    It is kept for a part of that time after its last request, if that often a request comes within it.
    """
    longest_s = min(LINGER_COSTS * cost_s, rules.extra_wait_s)
    if one.is_closed or one.demand * longest_s < 1.0:
        return 0.0
    return max(0.0, longest_s - one.idle_s)


def loss(one: ResidentRunner) -> float:
    """Give the seconds of loading a second that are expected from giving it up."""
    return one.demand * one.load_s


def waited_s(line: QueueState) -> float:
    """Give what counts of a line's wait: what came before the end of its model's last turn does not.

    Else a model with more to do than it can would be due again at once, and be next before all others.
    """
    return min(line.oldest_s, line.since_turn_s)


@dataclass(slots=True)
class _Look:
    """One look at the house: what is found out while its lines are gone through.

    times    seconds after which time alone may change the decision
    reasons  by model, what its line waits for
    claims   room that is kept for the lines that were gone through, from those that follow
    loading  devices on which something is being loaded, or will be next
    is_short somebody whose model is not loaded at all found no room
    """

    house: SchedulerState
    by_alias: dict[str, list[ResidentRunner]] = field(default_factory=dict)
    waiting: set[str] = field(default_factory=set)
    times: list[float] = field(default_factory=list)
    reasons: dict[str, str] = field(default_factory=dict)
    claims: list[Claim] = field(default_factory=list)
    loading: set[int] = field(default_factory=set)
    is_short: bool = False

    def __post_init__(self) -> None:
        for one in self.house.residents:
            self.by_alias.setdefault(one.alias, []).append(one)
            if one.phase == "loading":
                self.loading |= set(one.memory)
        self.waiting = {line.alias for line in self.house.lines}

    def is_needed(self, one: ResidentRunner) -> bool:
        """Say whether it gives way for somebody."""
        return any(one.key in claim.keys for claim in self.claims)

    def lines(self) -> Step | None:
        """Give the step of the most urgent line that has one. None = there is none.

        The lines after it are gone through only for what they still need of those that are closed.
        """
        step: Step | None = None
        is_open = not any(one.is_closed and one.phase == "ready" for one in self.house.residents)
        for line in sorted(self.house.lines, key=self._urgency):
            found, reason = self._line(line)
            self.reasons[line.alias] = reason
            step = step or found
            if step is not None and is_open:
                break
        return step

    def _urgency(self, line: QueueState) -> tuple[bool, bool, float, int]:
        """Further replicas come last, lines for which somebody gave way first; then by priority and age; of equal ones the longer."""
        is_replica = any(one.phase != "stopping" for one in self.by_alias.get(line.alias, ()))
        return (
            is_replica,
            not line.is_owed,
            line.priority - waited_s(line) / self.house.rules.ageing_s,
            -(line.requests + line.loads),
        )

    def _line(self, line: QueueState) -> tuple[Step | None, str]:
        facts = self.house.facts[line.alias]
        mine = [one for one in self.by_alias.get(line.alias, ()) if one.phase != "stopping"]
        reason = _has_its_own(line, facts, mine)
        if reason:
            return None, reason
        if facts.rest_s > 0:
            self.times.append(facts.rest_s)
            return None, "it rests after a crash"
        if mine and self.is_short:
            return None, "all its slots are busy, and others wait for room"
        return self.room(line, facts, mine)

    def room(
        self, line: QueueState, facts: ModelFacts, mine: list[ResidentRunner]
    ) -> tuple[Step | None, str]:
        """Say what makes room for one more llama-server of a model, as (step or None, what it waits for).

        1. there is room                                         → Start, once nothing else is being loaded there
        2. it would be a further replica, or may not push        → waits
        3. not even with all others gone                         → Refuse; but what is going may leave more than is known: waits
        4. there would be room, but it is kept for others        → waits
        5. it is better to wait (see _better_wait_s)             → waits
        6. what is being stopped will be room enough             → waits
        7. the load could not begin yet                          → waits
        8. busy ones must go                                     → Close, once all of them have stayed long enough
        9. idle ones can go                                      → Stop
        """
        devices = fitting(facts, self.house, claims=self.claims)
        if devices is not None:  # 1
            return (None, LOADS_FIRST) if self._claim(facts, devices) else (Start(line.alias, devices), "")
        if mine:  # 2
            return None, "all its slots are busy"
        if not line.may_evict:
            return None, NO_ROOM
        self.is_short = True
        going = self._who_goes(facts, self.claims)
        if going is None:
            return self._impossible(line, facts)  # 3, 4
        victims = [one for one in going if one.phase != "stopping"]
        busy = [one for one in victims if self._is_busy(one)]
        wait_s = self._better_wait_s(line, facts, victims, busy)
        if wait_s > 0:  # 5
            self.times.append(wait_s)
            return None, f"{_names(victims)} {'is in use' if busy else 'is likely to be asked again'}"
        has_to_wait = self._claim_after(facts, going, is_next=not busy)
        if not victims:  # 6
            return None, "room is being made"
        if has_to_wait:  # 7
            return None, LOADS_FIRST
        return self._close(line, busy) if busy else (Stop(victims[0].key, "room", line.alias), "")  # 8, 9

    def _close(self, line: QueueState, busy: list[ResidentRunner]) -> tuple[Step | None, str]:
        """Close all of them together, else one would stand idle for as long as another stays."""
        if any(one.phase == "loading" for one in busy):
            return None, f"{_names(busy)} is just being loaded"
        opened = [one for one in busy if not one.is_closed]
        left_s = max((self._stays_s(one) for one in opened), default=0.0)
        if left_s > 0:
            self.times.append(left_s)
            return None, f"{_names(busy)} was just loaded"
        if opened:
            return Close(opened[0].key, line.alias), ""
        return None, f"{_names(busy)} ends what it has begun"

    def _impossible(self, line: QueueState, facts: ModelFacts) -> tuple[Step | None, str]:
        """Refuse what cannot be, for memory or because pinned models hold every place; unless others' claims or those going are why."""
        if fitting(facts, self.house) is not None or self._who_goes(facts, []) is not None:
            return None, f"{self.claims[0].alias} goes first"
        if any(one.phase == "stopping" for one in self.house.residents):
            return None, "room is being made"
        rules = self.house.rules
        if len({one.alias for one in self.house.residents if one.is_pinned}) >= rules.places:
            return Refuse(line.alias, "pinned"), ""
        return Refuse(
            line.alias, "memory", facts.need_bytes + rules.margin_bytes, available_bytes(facts, self.house)
        ), ""

    def _who_goes(self, facts: ModelFacts, claims: list[Claim]) -> list[ResidentRunner] | None:
        """Choose who leaves for a model: see _rank. One that is enough alone is taken before several, if no more is lost by it."""
        taken = {key for claim in claims for key in claim.keys}
        order = sorted(
            (
                one
                for one in self.house.residents
                if one.key not in taken
                and (one.phase == "stopping" or not (one.is_pinned or one.alias == facts.alias))
            ),
            key=lambda one: self._rank(one, facts),
        )
        best = leaving(facts, self.house, order, claims)
        if best is None or len(best) < 2:
            return best
        level, lost = max(self._level(one, facts) for one in best), sum(map(self._loss, best))
        for one in order:
            if (self._level(one, facts), self._loss(one)) <= (level, lost) and fitting(
                facts, self.house, gone=(one.key,), claims=claims
            ) is not None:
                return [one]
        return best

    def _rank(self, one: ResidentRunner, facts: ModelFacts) -> tuple[int, float, float]:
        """Order who leaves: by level, then the least loss first, then the longest idle."""
        return self._level(one, facts), self._loss(one), -one.idle_s

    def _level(self, one: ResidentRunner, facts: ModelFacts) -> int:
        """0 leaving anyway · 1 idle · 2 closed already · 3 idle, but likely to be asked again · 4 busy · 5 just loaded · 6 loading"""
        if one.phase == "stopping":
            return 0
        if not self._is_busy(one):
            return 1 if lingers_s(one, facts.load_s + one.load_s, self.house.rules) <= 0 else 3
        if one.is_closed:
            return 2
        if one.phase == "ready":
            return 4 if self._stays_s(one) <= 0 else 5
        return 6

    def _loss(self, one: ResidentRunner) -> float:
        """Give the loss by one of several replicas: they share it. What is going already is lost."""
        if one.phase == "stopping":
            return 0.0
        return loss(one) / sum(other.phase != "stopping" for other in self.by_alias[one.alias])

    def _is_busy(self, one: ResidentRunner) -> bool:
        """Say whether it has work: running answers, its loading, or a line that it is open for."""
        return one.phase == "loading" or bool(one.active) or (one.alias in self.waiting and not one.is_closed)

    def _stays_s(self, one: ResidentRunner) -> float:
        return stay_s(one, self.house.rules) - one.ready_s

    def _better_wait_s(
        self, line: QueueState, facts: ModelFacts, victims: list[ResidentRunner], busy: list[ResidentRunner]
    ) -> float:
        """Give how long it is better to wait than to swap: for busy ones until the line is due, for idle ones until they linger no longer."""
        if not victims:
            return 0.0
        rules = self.house.rules
        cost_s = facts.load_s + max(one.load_s for one in victims)
        due_in_s = due_s(line, cost_s, rules) - waited_s(line)
        return due_in_s if busy else min(due_in_s, max(lingers_s(one, cost_s, rules) for one in victims))

    def _claim(
        self, facts: ModelFacts, devices: tuple[int, ...], keys: tuple[int, ...] = (), *, is_next: bool = True
    ) -> bool:
        """Keep room for a model, and say whether a load on its devices comes before its own. `is_next`: it will be loaded very soon."""
        self.claims.append(Claim(facts.alias, devices, facts.need_bytes, keys))
        has_to_wait = bool(self.loading & set(devices))
        if is_next:
            self.loading |= set(devices)
        return has_to_wait

    def _claim_after(self, facts: ModelFacts, going: list[ResidentRunner], *, is_next: bool) -> bool:
        keys = tuple(one.key for one in going)
        return self._claim(
            facts, fitting(facts, self.house, gone=keys, claims=self.claims) or (), keys, is_next=is_next
        )


def _names(some: list[ResidentRunner]) -> str:
    return ", ".join(sorted({one.alias for one in some}))


def _has_its_own(line: QueueState, facts: ModelFacts, mine: list[ResidentRunner]) -> str:
    """Say why a line needs no room: it has what it can have. "" = it needs some."""
    if any(one.phase == "loading" for one in mine):
        return "it is being loaded"
    if any(one.is_closed for one in mine):
        return "it gave way, and its turn comes again"
    if mine and (len(mine) >= facts.replicas or not line.requests):
        return "all its slots are busy"
    return ""


# ---- demand


class Demand:
    """How often a model is asked for, recent requests counting more."""

    __slots__ = ("_at_s", "_sum")

    def __init__(self) -> None:
        self._sum = 0.0
        self._at_s = 0.0

    def add(self, now_s: float) -> None:
        self._sum = self._faded(now_s) + 1.0
        self._at_s = now_s

    def rate(self, now_s: float) -> float:
        """Give requests a second."""
        return self._faded(now_s) / DEMAND_S

    def _faded(self, now_s: float) -> float:
        return self._sum * math.exp(-max(0.0, now_s - self._at_s) / DEMAND_S)
