"""The state of one llama-server: what it serves, its memory, its load, its use."""

import asyncio
from dataclasses import dataclass, field
from typing import Literal

from appliance.models.runner.process import Process
from appliance.models.table.catalogue import Model

RunnerPhase = Literal["loading", "ready", "stopping"]


@dataclass(slots=True, eq=False)
class Runner:
    """One llama-server. Times ending in `_s` are monotonic except `…_at_s` (seconds since 1970).

    Attributes:
        serial: Its number; never used twice while the appliance runs.
        devices: Where it is loaded, as the driver counts; -1 = system memory.
        need_bytes: The memory that it is expected to take, on all devices together.
        phase: `stopping` from the moment that its stop begins.
        load_phase: While `phase` is loading: `starting` until something listens on its port, then `loading`.
        load_progress: 0 to 100.
        active: Requests that hold one of its slots.
        is_draining: It gets no more requests, so that it can be unloaded for another model.
        is_stop_requested: An eject or a changed definition stops it: it is not replaced, and its end is not
            a failure.
        keep_alive_s: How long it stays without a request, as the latest request said; None = as configured,
            negative = for ever.
        memory_by_device: Bytes that it takes, by device.
        free_at_start: Free bytes by device before its load, where its memory is not known; else empty.
        file_bytes: Of its memory the pages of files, which the kernel counts as available.
        failed_probes: Health probes that failed in a row.
        silent_answers: Requests in a row that got no answer in time although it is healthy.
        idle: Set while no request holds a slot.
        load_ended: Set when its load has succeeded or failed.
        before_load: The hook that runs before its load; None = none runs now.
        needs_after_unload: A hook is to run when it has ended.
        after_unload: That hook, once it was begun.
        history_key: Of the file that it was started with, see `load_history.key_of`; "" = not known.
        removed: Set when its process has exited and its memory is free.
    """

    serial: int
    alias: str
    model: Model
    devices: tuple[int, ...]
    slots: int
    need_bytes: int
    load_started_s: float
    started_at_s: float
    phase: RunnerPhase = "loading"
    load_phase: Literal["starting", "loading"] = "starting"
    port: int = 0
    process: Process | None = None
    active: int = 0
    is_draining: bool = False
    is_stop_requested: bool = False
    failed_probes: int = 0
    silent_answers: int = 0
    idle_since_s: float = 0.0
    ready_since_s: float = 0.0
    load_s: float = 0.0
    last_used_at_s: float | None = None
    keep_alive_s: float | None = None
    load_progress: int = 0
    memory_by_device: dict[int, int] = field(default_factory=dict)
    free_at_start: dict[int, int] = field(default_factory=dict)
    file_bytes: int = 0
    before_load: Process | None = None
    needs_after_unload: bool = False
    after_unload: "asyncio.Task[None] | None" = None
    history_key: str = ""
    idle: asyncio.Event = field(default_factory=asyncio.Event)
    load_ended: asyncio.Event = field(default_factory=asyncio.Event)
    removed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def pid(self) -> int:
        """The process id; 0 while there is none."""
        return self.process.pid if self.process is not None else 0

    @property
    def memory_bytes(self) -> int:
        """The memory that it takes on all devices together."""
        return sum(self.memory_by_device.values())
