"""What the router and the dispatcher need of a backend, and what a backend reports to them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, Self, runtime_checkable

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
from appliance.models.table.sampling import RequestSettings


def _ignore() -> None:
    """Do nothing."""


@dataclass(frozen=True, slots=True)
class BackendCallbacks:
    """What a backend calls while requests run; passed to its constructor (see Router.callbacks).

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
    """One server of an engine, or several that are addressed as one."""

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
        """Its load and response times, for the balancing strategies."""
        ...

    @property
    def kind(self) -> str:
        """Its kind as ListBackends shows it."""
        ...

    @property
    def is_remote(self) -> bool:
        """Whether its requests leave the operator's own machines."""
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
        """Return the model of this name; None = it is not served. A backend may serve any name."""
        ...

    def status(self, now_s: float) -> BackendStatus:
        """Return whether a request can be sent now; `now_s` is monotonic."""
        ...

    def take(self, reason: str) -> Slot[Self]:
        """Take a slot; `reason`: why the backend was chosen. The caller sends at once; `send` releases it."""
        ...

    def uncounted_slot(self) -> Slot[Self]:
        """Return a slot that takes no capacity, for a request about the server itself."""
        ...

    async def prepare_passthrough(self, slot: AnySlot, model: str | None, options: RequestOptions) -> None:
        """Prepare a slot for passthrough: afterwards it has the server's url.

        Raises:
            ApplianceError: The model is not available, or it is not clear which one is meant.
        """
        ...

    async def send(self, request: EngineRequest, slot: AnySlot, *, budget_s: float) -> EngineReply:
        """Answer `request`; the slot is always released, that of a stream when it is closed.

        Cancelling closes the upstream connection.

        Args:
            request: Its receipt gets backend, endpoint, served_model, attempts and upstream_ms.
            slot: As `take` returned it.
            budget_s: Seconds until the response must have begun; a whole one must be complete by then.

        Raises:
            AttemptFailed: Another backend may try.
            ApplianceError: Every backend would fail it; or all endpoints of a hosted API failed.
        """
        ...

    def record(self, slot: AnySlot, outcome: Outcome, retry_after_s: float | None) -> None:
        """Record how a request ended; called once, when its slot is released."""
        ...

    def describe(self) -> BackendState:
        """Return its current state, from memory."""
        ...

    def measure(self) -> None:
        """Bring its gauges up to date; called when metrics are read."""
        ...

    async def close(self) -> None:
        """Close what it has opened."""
        ...


@runtime_checkable
class SettlesRequests(Protocol):
    """A backend whose models may have settings for requests in the model table."""

    def passthrough_settings(self, slot: AnySlot) -> tuple[str, RequestSettings] | None:
        """Return what the table says about requests for the model that a slot of passthrough is for.

        Returns:
            (the model, the settings); None = nothing.
        """
        ...


@runtime_checkable
class TokenCounter(Protocol):
    """A backend that can count a prompt's tokens. One without this method cannot."""

    async def count_tokens(self, model: str, body: dict[str, Any]) -> int | None:
        """Return how many tokens the prompt of a chat has; it takes no slot, and loads no model.

        Args:
            model: As backends know it.
            body: Of a chat request.

        Returns:
            None = it cannot count them at this moment.
        """
        ...
