"""The instances of one market: their life by the clock, what they cost, what became of them."""

from collections import deque
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from appliance.base.clock import format_rfc3339
from appliance.simulate.faults import Faults
from appliance.simulate.twin_clock import TwinClock

MAX_LIVE = 64
MAX_ENDED = 1000
MAX_EVENTS = 2000
MS_PER_H = 3_600_000


class Stage(Enum):
    """Where an instance is in its life."""

    CREATED = "created"
    LOADING = "loading"
    RUNNING = "running"
    STOPPED = "stopped"
    EXITED = "exited"
    ENDED = "ended"  # its paid time is over; the market has ended it
    DESTROYED = "destroyed"


GONE = (Stage.ENDED, Stage.DESTROYED)


@dataclass(slots=True)
class RentedInstance:
    """One instance.

    Attributes:
        facts: What the market's listing says of it and this module does not know.
        ports: TCP ports of the container, one engine each.
        gpu_musd_per_h, disk_musd_per_h: What it costs while it runs, and while it exists.
        paid_musd: What was paid ahead.
        paid_ms: For how long it was paid ahead, counted while it runs; 0 = it is billed by time.
        ends_ms: When that will be over; None = never, or not known yet.
        priced: Cost so far: micro-dollars per hour × milliseconds, so that nothing is rounded on the way.
        since_ms: Up to when it is counted, and when its stage began at `stage_ms`.
    """

    id: int
    label: str
    created_ms: int
    facts: dict[str, Any]
    environ: dict[str, str] = field(default_factory=dict, repr=False)
    args: tuple[str, ...] = ()
    onstart: str = field(default="", repr=False)
    ports: tuple[int, ...] = ()
    gpu_musd_per_h: int = 0
    disk_musd_per_h: int = 0
    paid_musd: int = 0
    paid_ms: int = 0
    ends_ms: int | None = None
    stage: Stage = Stage.CREATED
    stage_ms: int = 0
    since_ms: int = 0
    priced: int = 0
    running_ms: int = 0
    first_run_ms: int | None = None
    ended_ms: int | None = None
    exits_ms: int | None = None
    is_stuck: bool = False
    lines: deque[str] = field(default_factory=lambda: deque(maxlen=200))
    addresses: list[tuple[int, int]] = field(default_factory=list)  # (the container's port, ours)

    @property
    def is_live(self) -> bool:
        """Whether it exists."""
        return self.stage not in GONE

    @property
    def cost_musd(self) -> int:
        """What it has cost so far, to the nearest micro-dollar."""
        return self.paid_musd + (2 * self.priced + MS_PER_H) // (2 * MS_PER_H)

    @property
    def rate_musd_per_h(self) -> int:
        """What it costs an hour at this moment."""
        gpu = self.gpu_musd_per_h if self.stage is Stage.RUNNING else 0
        return gpu + self.disk_musd_per_h if self.is_live else 0

    def count_to(self, at_ms: int) -> None:
        """Count its cost up to a time, in the stage that it is in."""
        passed = max(0, at_ms - self.since_ms)
        self.priced += passed * self.rate_musd_per_h
        if self.stage is Stage.RUNNING:
            self.running_ms += passed
        self.since_ms = max(self.since_ms, at_ms)


class RentedFleet:
    """The instances of one market.

    Args:
        service: The market's name among the faults.
        clock: The twin's.
        faults: Some keep an instance from running, or end it.
        created_s, loading_s: How long an instance is created, then loading.
    """

    def __init__(
        self, service: str, clock: TwinClock, faults: Faults, *, created_s: float, loading_s: float
    ) -> None:
        self._service = service
        self._clock = clock
        self._faults = faults
        self._created_ms = round(created_s * 1000)
        self._loading_ms = round(loading_s * 1000)
        self._number = 7_000_000
        self._older_musd = 0  # of those whose records are no longer kept
        self.instances: dict[int, RentedInstance] = {}
        self.events: deque[dict[str, Any]] = deque(maxlen=MAX_EVENTS)
        self.created_count = 0

    # ---- what there is

    def live(self) -> list[RentedInstance]:
        """Return those that exist, the oldest first."""
        return [instance for instance in self.instances.values() if instance.is_live]

    def find(self, text: str) -> RentedInstance | None:
        """Return an instance that exists, by its id."""
        instance = self.instances.get(int(text)) if text.isdecimal() and len(text) < 16 else None
        return instance if instance is not None and instance.is_live else None

    @property
    def cost_musd(self) -> int:
        """What all have cost so far."""
        return self._older_musd + sum(instance.cost_musd for instance in self.instances.values())

    # ---- what happens to them

    def create(self, instance: RentedInstance) -> RentedInstance:
        """Take a new instance; its id and its times are set here."""
        self._number += 1
        self.created_count += 1
        instance.id = self._number
        instance.created_ms = instance.stage_ms = instance.since_ms = self._clock.now_ms()
        self.instances[instance.id] = instance
        self._note(instance, "created", instance.created_ms)
        return instance

    def move(self, instance: RentedInstance, stage: Stage, at_ms: int | None = None) -> None:
        """Bring an instance into a stage, now or at a time that has passed."""
        at_ms = self._clock.now_ms() if at_ms is None else at_ms
        instance.count_to(at_ms)
        instance.stage, instance.stage_ms = stage, at_ms
        if stage is Stage.RUNNING:
            instance.first_run_ms = at_ms if instance.first_run_ms is None else instance.first_run_ms
            instance.ends_ms = at_ms + instance.paid_ms - instance.running_ms if instance.paid_ms else None
        if stage in (Stage.STOPPED, Stage.EXITED):
            instance.exits_ms = None
        if stage in GONE:
            instance.ended_ms = at_ms
        self._note(instance, stage.value, at_ms)
        if stage in GONE:
            self._forget_oldest()

    def settle(self) -> None:
        """Bring every instance up to the present time."""
        now_ms = self._clock.now_ms()
        for instance in self.live():
            while (change := self._next_change(instance, now_ms)) is not None:
                self.move(instance, *change)
            instance.count_to(now_ms)

    def _next_change(self, instance: RentedInstance, now_ms: int) -> tuple[Stage, int] | None:
        """Return the next (stage, time) of an instance that is due.

        1. its paid time is over               → ended
        2. created, loading for long enough    → loading, running, unless it is stuck
        3. it runs and a fault ends it         → exited
        """
        if not instance.is_live:
            return None
        due: list[tuple[int, Stage]] = []
        if instance.ends_ms is not None:  # 1
            due.append((instance.ends_ms, Stage.ENDED))
        if instance.stage is Stage.CREATED:  # 2
            due.append((instance.stage_ms + self._created_ms, Stage.LOADING))
        if instance.stage is Stage.LOADING and not instance.is_stuck:
            ready_ms = instance.stage_ms + self._loading_ms
            if ready_ms <= now_ms and self._faults.take(self._service, "state", ("stuck_loading",)):
                instance.is_stuck = True
                instance.lines.append(f"{_time(ready_ms)} still loading (a fault of the simulation)")
            else:
                due.append((ready_ms, Stage.RUNNING))
        if instance.stage is Stage.RUNNING:  # 3
            if instance.exits_ms is None and (fault := self._faults.take(self._service, "state", ("exits",))):
                at_ms = instance.stage_ms if instance.since_ms <= instance.stage_ms else instance.since_ms
                instance.exits_ms = at_ms + round(fault.parameters["seconds"] * 1000)
            if instance.exits_ms is not None:
                due.append((instance.exits_ms, Stage.EXITED))
        at_ms, stage = min(due, key=lambda item: item[0], default=(now_ms + 1, Stage.ENDED))
        return (stage, at_ms) if at_ms <= now_ms else None

    def _note(self, instance: RentedInstance, event: str, at_ms: int) -> None:
        instance.lines.append(f"{_time(at_ms)} {event} (simulated)")
        self.events.append(
            {
                "at": _time(at_ms),
                "at_ms": at_ms,
                "service": self._service,
                "id": instance.id,
                "event": event,
                "label": instance.label,
            }
        )

    def _forget_oldest(self) -> None:
        gone = [instance for instance in self.instances.values() if not instance.is_live]
        for instance in gone[: max(0, len(gone) - MAX_ENDED)]:
            self._older_musd += instance.cost_musd
            del self.instances[instance.id]

    # ---- for people

    def truth(self) -> dict[str, Any]:
        """Return what really is, ready for JSON."""
        live = self.live()
        return {
            "running": sum(instance.stage is Stage.RUNNING for instance in live),
            "live": len(live),
            "created_total": self.created_count,
            "cost_musd": self.cost_musd,
            "cost_musd_per_h": sum(instance.rate_musd_per_h for instance in live),
            "instances": [_describe(instance) for instance in self.instances.values()],
            "events": list(self.events),
        }


def _describe(instance: RentedInstance) -> dict[str, Any]:
    return {
        "id": instance.id,
        "label": instance.label,
        "status": instance.stage.value,
        "is_live": instance.is_live,
        "is_stuck": instance.is_stuck,
        "gpu_name": instance.facts.get("gpu_name", ""),
        "num_gpus": instance.facts.get("num_gpus", 0),
        "created_at": _time(instance.created_ms),
        "ended_at": _time(instance.ended_ms),
        "running_s": instance.running_ms / 1000,
        "cost_musd": instance.cost_musd,
        "paid_musd": instance.paid_musd,
        "cost_musd_per_h": instance.rate_musd_per_h,
        "gpu_musd_per_h": instance.gpu_musd_per_h,
        "disk_musd_per_h": instance.disk_musd_per_h,
        "engines": [
            f"http://127.0.0.1:{ours}" for _, ours in instance.addresses if instance.stage is Stage.RUNNING
        ],
    }


def _time(at_ms: int | None) -> str:
    return "" if at_ms is None else format_rfc3339(at_ms / 1000, fraction_digits=3)
