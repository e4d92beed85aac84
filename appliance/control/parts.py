"""What the control door is given. The doors never import the wiring; `app.py` fills this in."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Protocol

from appliance.base.lines import LineRing
from appliance.base.settings import Described, Problem
from appliance.base.watch import Watched
from appliance.engines.receipts import Receipt, Receipts
from appliance.engines.router import Router


@dataclass(frozen=True, slots=True)
class Change:
    """One variable that a reload changes; secrets are hidden in both values."""

    variable: str
    old: str
    new: str
    needs_restart: bool


@dataclass(frozen=True, slots=True)
class ReloadResult:
    """What a reload came to."""

    changes: tuple[Change, ...]
    problems: tuple[Problem, ...]
    applied: bool
    message: str


class WorkerLike(Protocol):
    """The worker's supervisor, as far as control uses it."""

    def as_dict(self) -> dict[str, Any]: ...
    async def start(self) -> Any: ...
    async def stop(self) -> Any: ...
    async def restart(self) -> Any: ...


@dataclass(frozen=True, slots=True)
class ControlParts:
    """The objects and verbs behind the control API."""

    router: Router
    receipts: Receipts
    worker: WorkerLike | None
    status: Callable[[], dict[str, Any]]
    changed: Watched[int]
    identity: Callable[[], dict[str, Any]]
    settings: Callable[[], list[Described]]
    reload: Callable[[dict[str, str], bool], Awaitable[ReloadResult]]
    drain: Callable[[], None]
    resume: Callable[[], None]
    shutdown: Callable[[float | None], None]
    lines: LineRing
    new_receipt: Callable[[str], Receipt]
    finish: Callable[[Receipt], None]
    is_draining: Callable[[], bool]
