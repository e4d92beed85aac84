"""The base of every group of calls, and the checks of fields that several calls share."""

import asyncio
import math
from collections.abc import Coroutine
from typing import Any, Protocol, TypeAlias, TypeVar

from grpc.aio import ServicerContext

from appliance.base.errors import Invalid
from appliance.base.tasks import Tasks
from appliance.control.parts import ControlParts
from appliance.control.v1 import control_pb2_grpc

T = TypeVar("T")
AnyContext: TypeAlias = ServicerContext[Any, Any]


class CallGroup(control_pb2_grpc.ControlServicer):
    """Some calls of the service. The servicer inherits all groups; a group does not use another.

    Args:
        parts: What the calls use.
        stopping: Set when the control API closes; it ends the watches.
        tasks: Runs work that a caller that leaves must not interrupt.
    """

    def __init__(self, parts: ControlParts, *, stopping: asyncio.Event, tasks: Tasks) -> None:
        self._parts = parts
        self._stopping = stopping
        self._tasks = tasks

    async def _run_uninterrupted(self, work: Coroutine[Any, Any, T]) -> T:
        """Wait for `work`; a caller that leaves in the middle does not interrupt it."""
        return await asyncio.shield(self._tasks.start(work, name="control-verb"))


class WatchRequest(Protocol):
    """A request of any Watch call."""

    @property
    def interval_s(self) -> float:
        """Seconds without a change after which the state is sent again; 0 = never."""


def require_text(text: str, field: str = "name") -> str:
    """Return a field that must not be empty.

    Raises:
        Invalid: It is empty.
    """
    if not text:
        raise Invalid(f"`{field}` is required.", param=field, code="missing_required_parameter")
    return text


def require_in_range(field: str, value: float, low: float, high: float) -> float:
    """Return a number that must be from `low` to `high`.

    Raises:
        Invalid: It is not, or it is not a finite number.
    """
    if not math.isfinite(value) or not low <= value <= high:
        raise Invalid(
            f"`{field}` must be from {low} to {high}, not {value:g}.", param=field, code="out_of_range"
        )
    return value


def parse_interval_s(request: WatchRequest) -> float | None:
    """Return a watch's `interval_s` in seconds; None where only changes are wanted.

    Raises:
        Invalid: It is not from 1 to 3600.
    """
    return require_in_range("interval_s", request.interval_s, 1, 3600) if request.interval_s else None
