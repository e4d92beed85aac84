"""One attempt that failed: how, and what follows from it."""

from appliance.base.errors import ApplianceError
from appliance.base.jsons import InvalidJson
from appliance.base.wire.types import WireError
from appliance.engines.outcome import Outcome, Retry
from appliance.engines.upstream.relay import BrokenStream

NOTE_CHARACTERS = 800  # of a failed server's response, for the receipt


class AttemptFailed(Exception):
    """An attempt failed before its first byte went to the client, in a way that lets another server try.

    Args:
        outcome: What it came to; its `retry` and `breaker` say what follows.
        note: What the server said, shortened.
        status: Its HTTP status; None = none came.
        retry_after_s: Its own word, seconds; None = it said nothing.
        was_sent: False when the server cannot have read any of the request.
        context: (prompt tokens or 0, the server's context or 0) when the prompt was too long for it.
        error: What to raise when no other server can answer.
    """

    def __init__(
        self,
        outcome: Outcome,
        note: str = "",
        *,
        status: int | None = None,
        retry_after_s: float | None = None,
        was_sent: bool = True,
        context: tuple[int, int] | None = None,
        error: ApplianceError | None = None,
    ) -> None:
        super().__init__(outcome)
        self.outcome, self.note, self.status = outcome, note, status
        self.retry_after_s, self.was_sent = retry_after_s, was_sent
        self.context, self.error = context, error

    @classmethod
    def of(cls, error: WireError | BrokenStream | InvalidJson) -> "AttemptFailed":
        """Return what a failed connection, a broken stream or an unreadable response is."""
        if isinstance(error, WireError):
            return cls(Outcome.of_phase(error.phase), str(error), was_sent=error.was_sent)
        return cls(Outcome.INVALID_RESPONSE, str(error))

    @property
    def retry(self) -> Retry:
        """When another backend may try: at no cost what was never sent, else as the outcome says."""
        return self.outcome.retry if self.was_sent else Retry.FREE

    @property
    def label(self) -> str:
        """The outcome as receipts and metrics show it: as `connect` or `status_502`."""
        return self.outcome.render(self.status)
