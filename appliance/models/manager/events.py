"""What the manager reports as it happens, for its metrics."""

from typing import Protocol

from appliance.models.status.views import RequestSample


class ManagerEvents(Protocol):
    """Counts what happens to models.

    Called on the event loop, between two decisions: it must not raise or block.
    """

    def finished(self, sample: RequestSample) -> None:
        """A request has ended."""

    def rejected(self, alias: str) -> None:
        """A request was refused: its queue is full, or there is no memory for its model."""

    def loaded(self, alias: str, seconds: float) -> None:
        """A model became ready, so many seconds after its load began."""

    def ejected(self, alias: str) -> None:
        """A model was unloaded, for whatever reason."""


class _NoEvents:
    def finished(self, sample: RequestSample) -> None: ...

    def rejected(self, alias: str) -> None: ...

    def loaded(self, alias: str, seconds: float) -> None: ...

    def ejected(self, alias: str) -> None: ...


NO_EVENTS: ManagerEvents = _NoEvents()
