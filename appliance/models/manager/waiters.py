"""What waits for a model: a request for one of its slots, or an operator for its load."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from appliance.base.fair_queue import Ticket
from appliance.models.runner.runner import Runner
from appliance.models.status.views import ModelView

T = TypeVar("T")


@dataclass(slots=True, eq=False)
class Lease:
    """The right to send one request to one llama-server."""

    runner: Runner
    granted_s: float
    waited_s: float
    on_release: "Callable[[Lease, bool, int, int], None]"
    is_released: bool = False

    @property
    def load_s(self) -> float:
        """How long it waited while its model was loaded, in seconds; 0 = the model was loaded before."""
        runner = self.runner
        began_s = max(self.granted_s - self.waited_s, runner.load_started_s)
        return max(0.0, runner.load_started_s + runner.load_s - began_s)

    @property
    def url(self) -> str:
        """The base address of the llama-server."""
        return f"http://127.0.0.1:{self.runner.port}"

    def release(self, *, is_ok: bool, prompt_tokens: int = 0, completion_tokens: int = 0) -> None:
        """Give the slot back and say how the request ended; a second call does nothing."""
        if not self.is_released:
            self.is_released = True
            self.on_release(self, is_ok, prompt_tokens, completion_tokens)


@dataclass(slots=True, eq=False)
class Waiter(Generic[T]):
    """A caller who waits for `future`.

    Attributes:
        since_s: When the wait began (monotonic).
        priority: 0 high, 1 normal, 2 low.
        keep_alive_s: How long the model stays without a request afterwards; None = as configured, negative =
            for ever.
    """

    alias: str
    since_s: float
    priority: int
    keep_alive_s: float | None
    future: "asyncio.Future[T]"

    def fail(self, error: Exception) -> None:
        """End the wait with an error, unless it has ended already."""
        if not self.future.done():
            self.future.set_exception(error)


@dataclass(slots=True, eq=False)
class SlotWaiter(Waiter[Lease]):
    """A request that waits for a slot; `ticket` is its position in the model's queue."""

    ticket: "Ticket[SlotWaiter] | None" = None


@dataclass(slots=True, eq=False)
class LoadWaiter(Waiter[ModelView]):
    """An operator who waits until a model is loaded; needs no slot."""


@dataclass(frozen=True, slots=True)
class WaitStatus:
    """What a waiting client may see.

    Attributes:
        position: In the queue, from 1.
        status: The model's status word.
        progress: 0 to 100 of its load; None = it does not load.
        expected_in_s: Until the model is ready; None = not known.
        reason: What the queue waits for, by the scheduler's latest decision.
    """

    position: int
    status: str
    progress: int | None
    expected_in_s: float | None
    reason: str
