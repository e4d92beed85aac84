"""What the scheduler sees and says: plain values. The house: who waits, who is loaded, what memory there is. The steps: what happens next.

Memory is in bytes by device: a GPU's index, or RAM. Times are durations, so that no clock is needed to read them.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class SchedulerRules:
    """What the operator set.

    places         models that may be loaded at a time
    extra_wait_s   the longest that a line waits for others to be served together before a place is cleared for it
    margin_bytes   memory that a load must leave free
    ageing_s       a wait of so long weighs as much as one level of priority
    """

    places: int = 3
    extra_wait_s: float = 30.0
    margin_bytes: int = 200 * MIB
    ageing_s: float = 10.0


@dataclass(frozen=True, slots=True)
class QueueState:
    """Those who wait for one model. `requests` want a slot, `loads` only that it is loaded; `oldest_s`: the longest wait among them.

    may_evict     False: it is loaded only where there is room (preloading, restoring after a crash)
    is_owed       a llama-server was closed or stopped for it, and it has not been started since: its room is nobody else's
    since_turn_s  since a llama-server of its own was closed or stopped for others: before that it had its turn
    """

    alias: str
    requests: int = 0
    loads: int = 0
    oldest_s: float = 0.0
    priority: int = 1
    may_evict: bool = True
    is_owed: bool = False
    since_turn_s: float = math.inf


@dataclass(frozen=True, slots=True)
class ResidentRunner:
    """One llama-server of the house.

    memory     what comes back when it goes; while it loads: all that it will take
    idle_s     since its last request ended (0 while one runs); ready_s: since it was ready
    load_s     how long it takes to load it again
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
class ModelFacts:
    """What is known of a model that is wanted. `rest_s`: how long it must rest after a crash; `load_s`: expected."""

    alias: str
    need_bytes: int = 0
    on_gpu: bool = False
    load_s: float = 1.0
    replicas: int = 1
    is_failed: bool = False
    rest_s: float = 0.0


@dataclass(frozen=True, slots=True)
class SchedulerState:
    """The state that a decision is made from. `free`, `total`: bytes by device, what is loading already taken off; without lines nobody asks."""

    lines: Sequence[QueueState] = ()
    residents: Sequence[ResidentRunner] = ()
    facts: Mapping[str, ModelFacts] = field(default_factory=dict)
    free: Mapping[int, int] = field(default_factory=dict)
    total: Mapping[int, int] = field(default_factory=dict)
    rules: SchedulerRules = SchedulerRules()


# ---- steps


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
