"""How many second tries there may be, so that retries never become a load of their own. Pure."""

from dataclasses import dataclass


@dataclass(slots=True)
class RetryBudget:
    """A purse: every request puts in `share` of a retry, a retry takes out one; it holds `cap` at most and begins with `floor`.

    So in the long run retries are at most `share` of the requests, and a quiet time saves up for a burst of `cap`.
    """

    share: float = 0.2
    floor: float = 10.0
    cap: float = 100.0
    tokens: float = -1.0

    def __post_init__(self) -> None:
        if self.tokens < 0:
            self.tokens = self.floor

    def deposit(self) -> None:
        """A request came."""
        if self.tokens < self.cap:
            self.tokens = min(self.cap, self.tokens + self.share)

    def withdraw(self) -> bool:
        """Take one retry out of the purse; False = it is empty."""
        if self.tokens < 1:
            return False
        self.tokens -= 1
        return True
