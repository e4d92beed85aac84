"""What every group of calls stands on: the parts behind the door, its end, and the checks of fields that several calls have."""

import asyncio
import math
from collections.abc import Coroutine
from typing import Any, TypeVar

from appliance.base.errors import Invalid
from appliance.base.tasks import Tasks
from appliance.control.parts import ControlParts
from appliance.control.v1 import control_pb2_grpc

T = TypeVar("T")


class CallGroup(control_pb2_grpc.ControlServicer):
    """One per door. `stopping` ends the calls that would go on for ever; `tasks` finishes what must not stay half done."""

    def __init__(self, parts: ControlParts, *, stopping: asyncio.Event, tasks: Tasks) -> None:
        self._parts = parts
        self._stopping = stopping
        self._tasks = tasks

    async def _finished(self, work: Coroutine[Any, Any, T]) -> T:
        """Wait for `work`; a caller that leaves in the middle does not interrupt it."""
        return await asyncio.shield(self._tasks.start(work, name="control-verb"))


def named(text: str, field: str = "name") -> str:
    """Give a field that must not be empty. Raises Invalid."""
    if not text:
        raise Invalid(f"`{field}` is required.", param=field, code="missing_required_parameter")
    return text


def within(name: str, value: float, low: float, high: float) -> float:
    """Give a number that must lie in a range. Raises Invalid."""
    if not math.isfinite(value) or not low <= value <= high:
        raise Invalid(
            f"`{name}` must be from {low} to {high}, not {value:g}.", param=name, code="out_of_range"
        )
    return value


def every_s(request: Any) -> float | None:
    """Give a watch's `interval_s`; None where it only wants changes. Raises Invalid."""
    return within("interval_s", request.interval_s, 1, 3600) if request.interval_s else None
