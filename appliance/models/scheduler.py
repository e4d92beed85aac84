"""What must happen next: serve, start, stop, close, refuse, or wait. Decisions only: no I/O, no clock; the manager acts and asks again.

A house has few places (by count, and by memory on each device) and more models that are wanted. No running answer is ever cut off to
make room. Loading costs time in which nothing is answered, so requests for a loaded model are served together before it gives way:

    an idle model stays as long as it is likely to be asked again before a swap would have paid for itself (`lingers_s`)
    a busy model goes on until the line before it is due (`due_s`), at most Rules.extra_wait_s; then it is closed: what runs ends,
    what comes waits for its next turn
    a model that was just loaded stays for a while whatever waits (`stay_s`), else two lines that are both due would only swap

Of the models that could give way the one goes first whose loss is least: how often it is asked for, times how long it takes to load.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

MIB = 1 << 20
NO_ROOM = "there is no room for it"
RAM = -1                        # the index of system memory among devices
TURN_COSTS = 4.0                # a line is due when it has waited so many times what the swap costs
STAY_LOADS = 2.0                # a loaded model stays at least so many times what its loading took, while it has work
PRIORITY_PATIENCE = {0: 0.5, 1: 1.0, 2: 2.0}        # high, normal, low: how much sooner or later a line is due
DEMAND_S = 120.0                # requests of so many seconds count as recent


@dataclass(frozen=True, slots=True)
class Rules:
    """What the operator set.

    places         models that may be loaded at a time
    extra_wait_s   the longest that a line waits for others to be served together before a place is cleared for it
    margin_bytes   memory that a load must leave free
    """

    places: int = 3
    extra_wait_s: float = 30.0
    margin_bytes: int = 200 * MIB
    ageing_s: float = 10.0


@dataclass(frozen=True, slots=True)
class Line:
    """Those who wait for one model. `requests` want a slot, `loads` only that it is loaded; `oldest_s`: the longest wait among them.
    may_evict False: it is loaded only where there is room (preloading, restoring after a crash)."""

    alias: str
    requests: int = 0
    loads: int = 0
    oldest_s: float = 0.0
    priority: int = 1
    may_evict: bool = True


@dataclass(frozen=True, slots=True)
class Resident:
    """One llama-server of the house. Memory in bytes by device; times are durations.

    idle_s     since its last request ended (0 while one runs); ready_s: since it was ready
    demand     requests for its model a second, recently
    is_closed  takes no more requests: it gives way
    stays_s    how much longer it stays without a request; None = for ever
    """

    key: int
    alias: str
    phase: Literal["loading", "ready", "stopping"]
    slots: int = 1
    active: int = 0
    memory: Mapping[int, int] = field(default_factory=dict)
    idle_s: float = 0.0
    ready_s: float = 0.0
    load_s: float = 1.0
    demand: float = 0.0
    is_pinned: bool = False
    is_closed: bool = False
    stays_s: float | None = None


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of a model that is wanted. `rest_s`: how long it must rest after a crash; `load_s`: expected."""

    alias: str
    need_bytes: int = 0
    on_gpu: bool = False
    load_s: float = 1.0
    replicas: int = 1
    is_failed: bool = False
    rest_s: float = 0.0


@dataclass(frozen=True, slots=True)
class House:
    """The state that a decision is made from. `free`, `total`: bytes by device, what is loading already taken off."""

    lines: Sequence[Line] = ()
    residents: Sequence[Resident] = ()
    facts: Mapping[str, Facts] = field(default_factory=dict)
    free: Mapping[int, int] = field(default_factory=dict)
    total: Mapping[int, int] = field(default_factory=dict)
    rules: Rules = Rules()


@dataclass(frozen=True, slots=True)
class Serve:
    """The line's next request goes to this llama-server."""

    alias: str
    key: int


@dataclass(frozen=True, slots=True)
class Start:
    """Load the model on these devices (several: it is split over them)."""

    alias: str
    devices: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Stop:
    """Unload it: it is idle. `why`: idle (its time is over) or room (for `alias`)."""

    key: int
    why: Literal["idle", "room"]
    alias: str = ""


@dataclass(frozen=True, slots=True)
class Close:
    """Give it no more requests, so that it becomes idle and makes room for `alias`."""

    key: int
    alias: str


@dataclass(frozen=True, slots=True)
class Open:
    """It need not give way any more."""

    key: int


@dataclass(frozen=True, slots=True)
class Refuse:
    """Nothing that may be done would let this model be loaded. Bytes; `why`: failed, memory or pinned."""

    alias: str
    why: Literal["failed", "memory", "pinned"]
    need_bytes: int = 0
    available_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing to do now. `again_s`: when time alone changes that; `reasons`: by model, what its line waits for."""

    again_s: float | None = None
    reasons: Mapping[str, str] = field(default_factory=dict)


Step = Serve | Start | Stop | Close | Open | Refuse | Wait


def free_slot(residents: Iterable[Resident]) -> int | None:
    """Give the key of the one that a request of theirs goes to: ready, open, and the least busy; None = none has a free slot."""
    best: tuple[float, int] | None = None
    for one in residents:
        if one.phase == "ready" and not one.is_closed and one.active < one.slots:
            score = (one.active / one.slots, one.key)
            best = score if best is None or score < best else best
    return best[1] if best else None


def next_step(house: House) -> Step:
    """Say what must happen first.

    1. somebody waits whose model has a free slot      → Serve
    2. somebody waits for a model that has failed      → Refuse
    3. an idle one's time is over                      → Stop
    4. one is closed, and nobody needs its room        → Open
    5. somebody waits whose model is not loaded        → Start, Stop, Close or Refuse: see _room_for, the most urgent line first
    6. nothing of it                                   → Wait
    """
    by_alias: dict[str, list[Resident]] = {}
    for one in house.residents:
        by_alias.setdefault(one.alias, []).append(one)
    waiting = {line.alias for line in house.lines}
    for line in house.lines:                                                                            # 1, 2
        key = free_slot(by_alias.get(line.alias, ())) if line.requests else None
        if key is not None:
            return Serve(line.alias, key)
        if house.facts[line.alias].is_failed:
            return Refuse(line.alias, "failed")
    times: list[float] = []
    for one in house.residents:                                                                         # 3
        if one.phase == "ready" and not one.active and one.alias not in waiting and not one.is_pinned and one.stays_s is not None:
            if one.stays_s <= 0:
                return Stop(one.key, "idle")
            times.append(one.stays_s)
    reasons: dict[str, str] = {}
    step, is_needed = _first_of_lines(house, by_alias, times, reasons)                                  # 5
    if not is_needed:
        for one in house.residents:                                                                     # 4
            if one.is_closed and one.phase == "ready":
                return Open(one.key)
    if step is not None:
        return step
    return Wait(min(times) if times else None, reasons)                                                 # 6


def _first_of_lines(house: House, by_alias: Mapping[str, list[Resident]], times: list[float],
                    reasons: dict[str, str]) -> tuple[Step | None, bool]:
    """Give (the step of the most urgent line that has one, whether any line needs a closed one's room)."""
    is_needed = False
    before: str | None = None           # a line that is due and for which room is being made: nobody may take that room
    for line in sorted(house.lines, key=lambda line: _urgency(line, house)):
        facts = house.facts[line.alias]
        mine = [one for one in by_alias.get(line.alias, ()) if one.phase != "stopping"]
        reason = _has_its_own(line, facts, mine)
        if not reason and before is not None:
            reason = f"{before} goes first"
        if reason:
            reasons[line.alias] = reason
            continue
        if facts.rest_s > 0 and not mine:
            times.append(facts.rest_s)
            reasons[line.alias] = "it rests after a crash"
            continue
        step, reason, needs_room = _room_for(line, facts, mine, house, times)
        is_needed = is_needed or needs_room
        if step is not None:
            return step, is_needed
        reasons[line.alias] = reason
        if needs_room:
            before = line.alias
    return None, is_needed


def _has_its_own(line: Line, facts: Facts, mine: list[Resident]) -> str:
    """Say why a line needs no room: it has what it can have. "" = it needs some."""
    if any(one.phase == "loading" for one in mine):
        return "it is being loaded"
    if any(one.is_closed for one in mine):
        return "it gave way, and its turn comes again"
    if mine and (len(mine) >= facts.replicas or not line.requests):
        return "all its slots are busy"
    return ""


def _urgency(line: Line, house: House) -> tuple[bool, float, int]:
    """Lines that have waited longest as to their patience go first; of equal ones the longer."""
    facts = house.facts[line.alias]
    is_due = line.oldest_s >= due_s(line, facts.load_s, house.rules)
    return not is_due, line.priority - line.oldest_s / house.rules.ageing_s, -(line.requests + line.loads)


def due_s(line: Line, cost_s: float, rules: Rules) -> float:
    """Give the wait after which busy models are closed for this line, for a swap that costs `cost_s`."""
    return min(rules.extra_wait_s, TURN_COSTS * cost_s * PRIORITY_PATIENCE[line.priority])


def stay_s(one: Resident, rules: Rules) -> float:
    """Give how long a model that was just loaded stays while it has work."""
    return min(rules.extra_wait_s, STAY_LOADS * one.load_s)


def lingers_s(one: Resident, cost_s: float, rules: Rules) -> float:
    """Give how much longer an idle model is better kept than given up for a swap that costs `cost_s`.

    Asked for so often that a request is expected before the swap would be done, it is kept; but no longer than the swap takes.
    """
    if one.is_closed or one.demand * cost_s < 1.0:
        return 0.0
    return max(0.0, min(cost_s, rules.extra_wait_s) - one.idle_s)


def loss(one: Resident) -> float:
    """Give the seconds of loading a second that are expected from giving it up."""
    return one.demand * one.load_s


# ---- room


def _room_for(line: Line, facts: Facts, mine: list[Resident], house: House, times: list[float]) -> tuple[Step | None, str, bool]:
    """Say what makes room for one more llama-server of a model, as (step, or None and what it waits for, whether it is due and waits).

    1. there is room, and nothing else is being loaded there → Start
    2. it would be a further replica, or may not push        → waits
    3. what is being stopped will be room enough             → waits
    4. not even with all others gone                         → Refuse
    5. idle ones can go, and it would not be better to wait  → Stop
    6. busy ones must go, and the line is due                → Close
    7. else                                                  → waits, until it is due or they are idle
    """
    devices = fitting(facts, house, gone=())
    if devices is not None:                                                                             # 1
        if any(one.phase == "loading" and set(one.memory) & set(devices) for one in house.residents):
            return None, "another model is being loaded", False
        return Start(line.alias, devices), "", False
    if mine or not line.may_evict:                                                                      # 2
        return None, NO_ROOM, False
    stopping = tuple(one.key for one in house.residents if one.phase == "stopping")
    if stopping and fitting(facts, house, gone=stopping) is not None:                                   # 3
        return None, "room is being made", True
    victims = _victims(facts, house)
    if victims is None:                                                                                 # 4
        return _refusal(line, facts, house)
    costs = facts.load_s + max((one.load_s for one in victims), default=0.0)
    due_in_s = due_s(line, costs, house.rules) - line.oldest_s
    waited_for = {other.alias for other in house.lines}
    idle = [one for one in victims if one.phase == "ready" and not one.active and (one.alias not in waited_for or one.is_closed)]
    busy = [one for one in victims if one not in idle]
    wait_s = max((lingers_s(one, costs, house.rules) for one in idle), default=0.0)
    if idle and not busy and (wait_s <= 0 or due_in_s <= 0):                                            # 5
        return Stop(idle[0].key, "room", line.alias), "", True
    if busy and due_in_s <= 0:                                                                          # 6
        for one in busy:
            left_s = stay_s(one, house.rules) - one.ready_s
            if one.phase == "ready" and not one.is_closed:
                if left_s <= 0:
                    return Close(one.key, line.alias), "", True
                times.append(left_s)
        for one in idle:
            if not busy or all(other.is_closed for other in busy):
                return Stop(one.key, "room", line.alias), "", True
        return None, f"{busy[0].alias} ends what it has begun", True
    times.append(max(0.0, min(due_in_s, wait_s) if idle and not busy else due_in_s))                    # 7
    names = ", ".join(sorted({one.alias for one in victims}))
    return None, f"{names} {'is likely to be asked again' if not busy else 'is in use'}", False


def fitting(facts: Facts, house: House, *, gone: Sequence[int]) -> tuple[int, ...] | None:
    """Give the devices that a model fits on once `gone` (keys) have left: the one with the most room, or all GPUs together; None = none."""
    left = {one.alias for one in house.residents if one.key not in gone}
    if facts.alias not in left and len(left) >= house.rules.places:
        return None
    free = dict(house.free)
    for one in house.residents:
        if one.key in gone:
            for device, size in one.memory.items():
                freed = free.get(device, 0) + size
                free[device] = min(freed, house.total.get(device, freed))
    devices = [index for index in free if (index >= 0) == facts.on_gpu]
    need = facts.need_bytes + house.rules.margin_bytes
    best = max(devices, key=lambda index: free[index], default=None)
    if best is not None and free[best] >= need:
        return (best,)
    together = [index for index in devices if free[index] > house.rules.margin_bytes]
    room = sum(free[index] - house.rules.margin_bytes for index in together)
    if len(together) > 1 and room >= facts.need_bytes and need > max(house.total.get(index, 0) for index in devices):
        return tuple(sorted(together))
    return None


def _victims(facts: Facts, house: House) -> list[Resident] | None:
    """Choose who gives way: the idle before the busy, the least loss first, none in vain; None = nobody may, or it would not do."""
    waited_for = {line.alias for line in house.lines}
    could = [one for one in house.residents if one.phase != "stopping" and not one.is_pinned and one.alias != facts.alias]
    could.sort(key=lambda one: (not one.is_closed, one.phase == "loading", bool(one.active) or one.alias in waited_for, loss(one), -one.idle_s))
    already = [one.key for one in house.residents if one.phase == "stopping"]
    chosen: list[Resident] = []
    for one in could:
        if fitting(facts, house, gone=(*already, *(c.key for c in chosen))) is not None:
            break
        chosen.append(one)
    if fitting(facts, house, gone=(*already, *(c.key for c in chosen))) is None:
        return None
    for one in chosen[::-1]:
        rest = [c for c in chosen if c is not one]
        if fitting(facts, house, gone=(*already, *(c.key for c in rest))) is not None:
            chosen = rest
    return chosen


def _refusal(line: Line, facts: Facts, house: House) -> tuple[Step | None, str, bool]:
    """Refuse what cannot be: for memory, or because pinned models hold every place."""
    movable = tuple(one.key for one in house.residents if not one.is_pinned)
    pinned = {one.alias for one in house.residents if one.is_pinned}
    if len(pinned) >= house.rules.places:
        return Refuse(line.alias, "pinned"), "", False
    available = 0
    for device, free in house.free.items():
        if (device >= 0) == facts.on_gpu:
            freed = sum(one.memory.get(device, 0) for one in house.residents if one.key in movable)
            available = max(available, free + freed)
    return Refuse(line.alias, "memory", facts.need_bytes + house.rules.margin_bytes, available), "", False


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
