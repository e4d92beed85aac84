"""What every backend is to the router and the dispatcher, and what it tells them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, Self

from appliance.base.balancing import Member
from appliance.engines.outcome import Outcome
from appliance.engines.slots import AnySlot, Slot
from appliance.engines.types import (
    BackendState,
    BackendStatus,
    EngineReply,
    EngineRequest,
    ModelCard,
    RequestOptions,
    ServedModel,
)


def _ignore() -> None:
    """Do nothing."""


@dataclass(frozen=True, slots=True)
class BackendCallbacks:
    """What a backend reports while requests run; given to it when it is built (see Router.callbacks).

    Attributes:
        on_capacity: It may be able to take a request that it could not take before.
        on_change: Its status or its facts changed.
        on_models: The models that it serves changed.
    """

    on_capacity: Callable[[], None] = _ignore
    on_change: Callable[[], None] = _ignore
    on_models: Callable[[], None] = _ignore


NO_CALLBACKS = BackendCallbacks()


class Backend(Protocol):
    """One reachable server, or a set of equal endpoints, of some engine."""

    @property
    def name(self) -> str:
        """Its name: unique, in metrics and receipts."""
        ...

    @property
    def pool(self) -> str:
        """The pool that it belongs to."""
        ...

    @property
    def member(self) -> Member:
        """Its load and times as a balancing strategy sees them."""
        ...

    @property
    def kind(self) -> str:
        """Its kind as ListBackends shows it."""
        ...

    @property
    def is_remote(self) -> bool:
        """Whether a request leaves the operator's own machines here."""
        ...

    @property
    def is_direct(self) -> bool:
        """Whether passthrough can send to it."""
        ...

    @property
    def is_managed(self) -> bool:
        """Whether the model manager starts and stops its llama-servers."""
        ...

    @property
    def is_demo(self) -> bool:
        """Whether it is the built-in demo engine."""
        ...

    @property
    def is_unknown(self) -> bool:
        """Whether what it serves is not known yet."""
        ...

    @property
    def in_flight(self) -> int:
        """Requests that it works on at this moment."""
        ...

    @property
    def context_tokens(self) -> int:
        """The context of one request in tokens; 0 = unknown."""
        ...

    def cards(self) -> list[ModelCard]:
        """List the models that it serves, public names first."""
        ...

    def find_model(self, model: str) -> ServedModel | None:
        """Return what `model` is here, or None; a backend that answers to any name returns what it has."""
        ...

    def status(self, now_s: float) -> BackendStatus:
        """Say whether a request can be sent at this moment (monotonic seconds)."""
        ...

    def take(self, reason: str) -> Slot[Self]:
        """Take a slot, chosen for `reason`; the caller sends at once, and `send` releases it."""
        ...

    def uncounted_slot(self) -> Slot[Self]:
        """Return a slot that takes no capacity, for a request about the server itself."""
        ...

    async def prepare_passthrough(self, slot: AnySlot, model: str | None, options: RequestOptions) -> None:
        """Make a slot ready for passthrough: afterwards its url is the server's.

        Raises:
            ApplianceError: The model cannot be had, or it is not clear which one is meant.
        """
        ...

    async def send(self, request: EngineRequest, slot: AnySlot, *, budget_s: float) -> EngineReply:
        """Answer `request`; the slot is released in any case, for a stream when it is closed.

        Cancelling closes the upstream connection.

        Args:
            request: Its receipt gets backend, endpoint, served_model, attempts and upstream_ms.
            slot: As `take` gave it.
            budget_s: Seconds until the response must have begun, without a stream until its end.

        Raises:
            AttemptFailed: Another backend may try.
            ApplianceError: Every backend would fail it; or all endpoints of a hosted API failed.
        """
        ...

    def record(self, slot: AnySlot, outcome: Outcome, retry_after_s: float | None) -> None:
        """Learn how a request ended; called once, when its slot is released."""
        ...

    def describe(self) -> BackendState:
        """Return its present state, from memory."""
        ...

    def measure(self) -> None:
        """Bring its gauges up to date; called when metrics are read."""
        ...

    async def close(self) -> None:
        """Close what it has opened."""
        ...
