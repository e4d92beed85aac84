"""The meter of a request that an account pays for.

The engines know no users, prices or wallets; what does implements `RequestMeter`, and `Billing` of types.py,
which makes it. Without accounts no request has either, and nothing here is called.
"""

from typing import NamedTuple, Protocol

from appliance.engines.outcome import Outcome


class TokenCounts(NamedTuple):
    """Tokens of one attempt.

    Attributes:
        prompt: Those from the cache included.
        cached: Of these, read from the engine's prompt cache.
        completion: Of the response.
    """

    prompt: int
    cached: int
    completion: int


class RequestMeter(Protocol):
    """Meters one request: each attempt is charged once. Nothing but `took_later` waits."""

    @property
    def counted(self) -> TokenCounts:
        """Tokens of the running attempt as we count them: the prompt by estimate."""
        ...

    @property
    def is_remote(self) -> bool:
        """Whether the running attempt is at an API that bills us."""
        ...

    @property
    def stop_reason(self) -> str:
        """Why the response was ended: `credits_exhausted`, `store_unavailable`; "" = it was not."""
        ...

    def begin_attempt(self, backend: str, served_model: str, *, is_remote: bool) -> None:
        """Note that the request is sent to a backend now.

        Args:
            backend: Its name.
            served_model: The model's name there.
            is_remote: It is an API that bills us.

        Raises:
            PaymentRequired: Earlier attempts used up what is held, and there is no more.
            Unavailable: It cannot be noted.
        """
        ...

    def took(self, events: int, n_bytes: int) -> bool:
        """Count a piece of a stream; False = it is not paid for, and not counted."""
        ...

    async def took_later(self, events: int, n_bytes: int) -> bool:
        """Count a piece that `took` has refused, after a wait for more credits; False = there are none."""
        ...

    def took_whole(self, text_bytes: int) -> None:
        """Count a whole response of which the engine told no tokens."""
        ...

    def end_attempt(self, outcome: Outcome, usage: TokenCounts | None) -> None:
        """Charge the attempt that runs; nothing if none runs. Does not raise: the response is there.

        Args:
            outcome: How it ended.
            usage: The engine's own figures; None = it gave none.
        """
        ...

    def close(self) -> None:
        """Give back what is held; an attempt that still runs ends as if the client had left; never raises."""
        ...
