"""What every backend promises to the dispatcher, and what every dialect of engine promises to the server that speaks it."""

from collections.abc import Callable
from typing import Any, Protocol

from appliance.base.balancing import Member
from appliance.engines.slots import Slot
from appliance.engines.types import (
    BackendState,
    BackendStatus,
    EngineReply,
    EngineRequest,
    ModelCard,
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

    def take(self, reason: str) -> Slot: ...

    async def send(self, request: EngineRequest, slot: Slot, *, budget_s: float) -> EngineReply:
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
