"""What every backend promises to the router."""

from typing import ClassVar, Protocol

from appliance.engines.types import BackendState, EngineReply, EngineRequest, ModelCard


class Backend(Protocol):
    """One reachable server (or set of equal endpoints) of some engine."""

    kind: ClassVar[str]
    name: str

    def cards(self) -> list[ModelCard]:
        """List the models it serves, public names first."""
        ...

    def serves(self, model: str) -> bool:
        """Say whether a request for `model` may be sent here."""
        ...

    async def send(self, request: EngineRequest) -> EngineReply:
        """Answer `request`, or raise.

        Gives   EngineReply; `request.receipt` has backend, endpoint, served_model, attempts and upstream_ms filled in
        Raises  UpstreamFailed when all its endpoints failed before the first byte · TimedOut when the time budget is gone
                · Unavailable while every endpoint is rested. Cancelling the call closes the upstream connection.
        """
        ...

    def state(self) -> BackendState:
        """Tell its present state, from memory."""
        ...

    def measure(self) -> None:
        """Bring its gauges up to date; called when metrics are read."""
        ...

    async def close(self) -> None: ...
