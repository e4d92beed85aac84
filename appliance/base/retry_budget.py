"""How many retries there may be, so that they never become a load of their own. Pure."""

from dataclasses import dataclass


@dataclass(slots=True)
class RetryBudget:
    """A token bucket: every request deposits a part of a retry, every retry withdraws one.

    In the long run retries are at most `share` of the requests; a quiet time saves up for a burst.

    Attributes:
        share: Deposited by each request.
        floor: Tokens at the start.
        cap: Most tokens.
        tokens: At present; negative = begin with `floor`.
    """

    share: float = 0.2
    floor: float = 10.0
    cap: float = 100.0
    tokens: float = -1.0

    def __post_init__(self) -> None:
        if self.tokens < 0:
            self.tokens = self.floor

    def deposit(self) -> None:
        """Count a request."""
        if self.tokens < self.cap:
            self.tokens = min(self.cap, self.tokens + self.share)

    def withdraw(self) -> bool:
        """Take one retry out of the budget; False = there is none."""
        if self.tokens < 1:
            return False
        self.tokens -= 1
        return True
