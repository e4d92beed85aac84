"""The input of the scheduler and its decisions: plain values.

Memory is in bytes by device: a GPU's index, or RAM. Times are durations, so that no clock is needed to read
them.
"""

import math
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Literal

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class SchedulerRules:
    """The operator's settings.

    Attributes:
        max_models: Models that may be loaded at a time.
        extra_wait_s: The longest wait of a queue, while other requests are served together, before a model is
            unloaded for it.
        margin_bytes: Memory that a load must leave free.
        ageing_s: A wait of so long weighs as much as one level of priority.
    """

    max_models: int = 3
    extra_wait_s: float = 30.0
    margin_bytes: int = 200 * MIB
    ageing_s: float = 10.0


@dataclass(frozen=True, slots=True)
class QueueState:
    """The waiters for one model.

    Attributes:
        requests: How many want a slot.
        loads: How many only want the model loaded.
        oldest_s: The longest wait among them.
        priority: The best among them: 0 high, 1 normal, 2 low.
        may_evict: False = the model is loaded only where it fits (preloading, restoring after a crash).
        has_reservation: A llama-server was drained or stopped for it, and it has not been started since: that
            memory is used by no other.
        since_eviction_s: Since a llama-server of its own was drained or stopped for others, which ended its
            turn.
    """

    alias: str
    requests: int = 0
    loads: int = 0
    oldest_s: float = 0.0
    priority: int = 1
    may_evict: bool = True
    has_reservation: bool = False
    since_eviction_s: float = math.inf


@dataclass(frozen=True, slots=True)
class ResidentRunner:
    """One llama-server that loads, runs or stops.

    Attributes:
        memory: The memory that its removal frees; while it loads, all that it will take.
        idle_s: Since its last request ended; 0 while one runs.
        ready_s: Since it was ready.
        load_s: How long it takes to load it again.
        demand: Requests for its model a second, recently.
        is_draining: It gets no more requests, so that it can be unloaded for another model.
        expires_in_s: How much longer it stays without a request; None = for ever.
    """

    serial: int
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
    is_draining: bool = False
    expires_in_s: float | None = None


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What is known of a model that clients wait for.

    Attributes:
        need_bytes: The memory that a load takes.
        on_gpu: Whether it is loaded on GPUs, else into system memory.
        load_s: How long a load is expected to take.
        replicas: How many llama-servers it may have.
        is_failed: It is not loaded again until it is reset.
        blocked_s: How much longer it is not loaded after a failure.
    """

    alias: str
    need_bytes: int = 0
    on_gpu: bool = False
    load_s: float = 1.0
    replicas: int = 1
    is_failed: bool = False
    blocked_s: float = 0.0


@dataclass(frozen=True, slots=True)
class SchedulerState:
    """The state that a decision is made from.

    Attributes:
        queues: One for each model that clients wait for.
        residents: Every llama-server.
        facts: By alias, at least of the models in `queues`.
        free: Bytes by device, without what loading llama-servers will take. May be empty without queues.
        total: Bytes by device. May be empty without queues.
        conflicts: By alias, the models that are never loaded together with one (groups of the table).
    """

    queues: Sequence[QueueState] = ()
    residents: Sequence[ResidentRunner] = ()
    facts: Mapping[str, ModelFacts] = field(default_factory=dict)
    free: Mapping[int, int] = field(default_factory=dict)
    total: Mapping[int, int] = field(default_factory=dict)
    rules: SchedulerRules = SchedulerRules()
    conflicts: Mapping[str, Set[str]] = field(default_factory=dict)


# ---- steps


@dataclass(frozen=True, slots=True)
class Serve:
    """Give a slot of this llama-server to the queue's next request."""

    alias: str
    serial: int


@dataclass(frozen=True, slots=True)
class Start:
    """Load the model on these devices; several = it is split over them."""

    alias: str
    devices: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Stop:
    """Unload an idle llama-server: its time is over (`idle`), or its memory is for `alias` (`evicted`)."""

    serial: int
    why: Literal["idle", "evicted"]
    alias: str = ""


@dataclass(frozen=True, slots=True)
class Drain:
    """Give a llama-server no more requests, so that it becomes idle and can be unloaded for `alias`."""

    serial: int
    alias: str


@dataclass(frozen=True, slots=True)
class Resume:
    """Give a draining llama-server requests again: no other model needs its memory any more."""

    serial: int


@dataclass(frozen=True, slots=True)
class Refuse:
    """Fail all waiters: no allowed step would let the model be loaded.

    Attributes:
        why: It has failed; memory does not suffice; the pinned models reach the limit; or one of them is
            never loaded together with it.
        need_bytes: With `memory`: what a load takes, the margin included.
        available_bytes: With `memory`: the most that can be made free.
    """

    alias: str
    why: Literal["failed", "memory", "pinned", "group"]
    need_bytes: int = 0
    available_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Wait:
    """Do nothing now.

    Attributes:
        again_s: When time alone changes that; None = never.
        reasons: By model, what its queue waits for.
    """

    again_s: float | None = None
    reasons: Mapping[str, str] = field(default_factory=dict)


Step = Serve | Start | Stop | Drain | Resume | Refuse | Wait
