"""When an endpoint is rested, and when one request may try it again. Pure: the caller brings the time."""

from dataclasses import dataclass


@dataclass(slots=True)
class Breaker:
    """Circuit breaker of one endpoint.

    closed     requests pass; `failures` in a row open it
    open       no request until `rest_s` has passed (or until the time its Retry-After named)
    half open  exactly one request tries; its success closes, its failure opens again
    """

    failures: int
    rest_s: float
    failed_in_a_row: int = 0
    open_until_s: float | None = None
    is_probing: bool = False

    def may_try(self, now_s: float) -> bool:
        """Say whether a request may go; when the rest is over, the asker becomes the probe.

        1. closed                    → yes
        2. open, rest not over       → no
        3. rest over, somebody probes → no
        4. rest over                 → yes, as the probe
        """
        if self.open_until_s is None:  # 1
            return True
        if now_s < self.open_until_s:  # 2
            return False
        if self.is_probing:  # 3
            return False
        self.is_probing = True  # 4
        return True

    def succeeded(self) -> None:
        self.failed_in_a_row = 0
        self.open_until_s = None
        self.is_probing = False

    def failed(self, now_s: float, *, retry_after_s: float | None = None) -> None:
        """Count a failure; `retry_after_s` (the endpoint's own word) rests it at once, ten minutes at most."""
        self.failed_in_a_row += 1
        was_probe, self.is_probing = self.is_probing, False
        if retry_after_s is not None:
            self.open_until_s = now_s + min(retry_after_s, 600.0)
        elif was_probe or self.failed_in_a_row >= self.failures:
            self.open_until_s = now_s + self.rest_s

    def abandoned(self) -> None:
        """The request ended without a verdict (the client left): a probe's place is free again."""
        self.is_probing = False

    def wait_s(self, now_s: float) -> float:
        """Give the seconds until a request may try again; 0 = now."""
        return 0.0 if self.open_until_s is None else max(0.0, self.open_until_s - now_s)
