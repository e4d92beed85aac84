"""One attempt that failed: how, and whether another one may follow."""

import re
from collections.abc import Callable

from appliance.base.errors import ApplianceError
from appliance.base.jsons import InvalidJson
from appliance.base.wire.types import UpstreamTimeout, WireError
from appliance.engines.outcome import Outcome, Retry
from appliance.engines.upstream.relay import BrokenStream

_NUMBER = re.compile(r"\d+")
NOTE_CHARACTERS = 800  # of the server's error text, for the receipt


class AttemptFailed(Exception):
    """An attempt failed before its first byte went to the client, in a way that lets another server try.

    Args:
        outcome: How it failed; its `retry` and `breaker` say what follows.
        note: The error text of the server, shortened.
        status: The HTTP status of the response; None = there was none.
        retry_after_s: Retry-After of the server in seconds; None = it sent none.
        was_sent: False if the server cannot have read any of the request.
        context: (prompt tokens or 0, the server's context or 0) if the prompt was too long for it.
        error: What to raise if no other server can answer.
        sentence: The engine's own error sentence; if a second server says the same, no other one is asked.

    Attributes:
        on_confirmed: Called if another server answered the same request, so that the fault was this
            server's; None = nothing is to be done.
        is_timeout: False if the server ended the connection; in these phases it usually is out of time.
    """

    on_confirmed: Callable[[], None] | None = None
    is_timeout = True

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
        sentence: str = "",
    ) -> None:
        super().__init__(outcome)
        self.outcome, self.note, self.status = outcome, note, status
        self.retry_after_s, self.was_sent = retry_after_s, was_sent
        self.context, self.error, self.sentence = context, error, sentence

    @classmethod
    def of(cls, error: WireError | BrokenStream | InvalidJson, note: str = "") -> "AttemptFailed":
        """Return the failure for a failed connection, a broken stream or an unreadable response.

        Args:
            error: What failed.
            note: Its text; "" = the error's own.
        """
        if isinstance(error, WireError):
            failed = cls(Outcome.of_phase(error.phase), note or str(error), was_sent=error.was_sent)
            failed.is_timeout = isinstance(error, UpstreamTimeout)
            return failed
        return cls(Outcome.INVALID_RESPONSE, str(error))

    @property
    def retry(self) -> Retry:
        """When another backend may try: always if nothing was sent, else as the outcome says."""
        return self.outcome.retry if self.was_sent else Retry.FREE

    def says_the_same_as(self, other: "AttemptFailed") -> bool:
        """Whether both engines said the same sentence; numbers in it (ids, sizes, times) do not count."""
        own = _NUMBER.sub("0", self.sentence)
        return bool(own) and own == _NUMBER.sub("0", other.sentence)

    @property
    def label(self) -> str:
        """The outcome as receipts and metrics show it, such as `connect` or `status_502`."""
        return self.outcome.render(self.status)
