"""What every backend promises to the dispatcher, and what every dialect of engine promises to the server that speaks it."""

from collections.abc import Callable
from typing import Any, Protocol, Self

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


class Backend(Protocol):
    """One reachable server (or set of equal endpoints) of some engine."""

    name: str
    pool: str
    member: Member
    on_capacity: Callable[[Any], None]

    @property
    def kind(self) -> str: ...

    @property
    def is_remote(self) -> bool:
        """Whether a request leaves the operator's own machines here (a hosted API)."""
        ...

    @property
    def is_direct(self) -> bool:
        """Whether it is a server that clients can speak to themselves, through passthrough."""
        ...

    @property
    def is_managed(self) -> bool:
        """Whether its processes are started and stopped by the model manager."""
        ...

    def is_unknown(self) -> bool:
        """Whether its models are not known, because it was not reached yet and none were configured."""
        ...

    @property
    def in_flight(self) -> int: ...

    @property
    def context_tokens(self) -> int:
        """The context of one request, in tokens; 0 = not known."""
        ...

    def cards(self) -> list[ModelCard]:
        """List the models it serves, public names first."""
        ...

    def find_model(self, model: str) -> ServedModel | None:
        """Return what `model` is here, or None; a backend that answers to any name returns what it has."""
        ...

    def status(self, now_s: float) -> BackendStatus:
        """Say whether a request can be sent at this moment (monotonic seconds)."""
        ...

    def take(self, reason: str) -> Slot[Self]:
        """Take a slot, chosen for `reason`."""
        ...

    def uncounted_slot(self) -> Slot[Self]:
        """Return a slot that takes no capacity, for a question about the backend itself."""
        ...

    def record(self, slot: AnySlot, outcome: Outcome, retry_after_s: float | None) -> None:
        """Hear what became of a slot; called by the slot, once."""
        ...

    async def prepare_passthrough(self, slot: AnySlot, model: str | None, options: RequestOptions) -> None:
        """Make a slot of passthrough ready to be spoken to."""
        ...

    async def send(self, request: EngineRequest, slot: AnySlot, *, budget_s: float) -> EngineReply:
        """Answer `request`, or raise; the place is given back in any case, for a stream when it is closed.

        Gives   EngineReply; `request.receipt` has backend, endpoint, served_model, attempts and upstream_ms filled in
        Raises  AttemptFailed: another backend may try · ApplianceError: nobody else would say otherwise, or (a hosted API, which
                has several endpoints of its own) all of them failed. Cancelling the call closes the upstream connection.
        """
        ...

    def state(self) -> BackendState:
        """Tell its present state, from memory."""
        ...

    def measure(self) -> None:
        """Bring its gauges up to date; called when metrics are read."""
        ...

    async def close(self) -> None: ...
