"""The circuit breaker of one endpoint. Pure: the caller passes the time."""

from dataclasses import dataclass, field
from typing import Literal

MAX_RETRY_AFTER_S = 600.0
MIN_DOUBTFUL_FLOWS = 2  # one client alone never opens a circuit by requests whose fault is undecided


@dataclass(slots=True)
class Breaker:
    """Stop sending to an endpoint that keeps failing, and let one request at a time try it again.

    closed       requests pass; `max_failures` in a row open it
    open         no request until `open_s` has passed, or the time of its Retry-After
    half open    exactly one request tries; its success closes the circuit, its failure opens it again
    """

    max_failures: int
    open_s: float
    failures_in_a_row: int = 0
    open_until_s: float | None = None  # monotonic; None = closed
    is_probing: bool = False
    undecided_flows: set[str] = field(default_factory=set)  # since the last success

    def admit(self, now_s: float) -> bool:
        """Return whether a request may be sent; if the circuit is half open, that request is the probe.

        1. closed                          → yes
        2. open                            → no
        3. half open, a probe is under way → no
        4. half open                       → yes, as the probe
        """
        if self.open_until_s is None:  # 1
            return True
        if now_s < self.open_until_s:  # 2
            return False
        if self.is_probing:  # 3
            return False
        self.is_probing = True  # 4
        return True

    def record_success(self) -> None:
        """Close the circuit."""
        self.failures_in_a_row = 0
        self.open_until_s = None
        self.is_probing = False
        if self.undecided_flows:
            self.undecided_flows.clear()

    def record_failure(self, now_s: float, *, retry_after_s: float | None = None) -> None:
        """Count a failure, and open the circuit if it was the last one allowed.

        Args:
            now_s: Monotonic seconds.
            retry_after_s: Retry-After of the endpoint: opens it at once, for MAX_RETRY_AFTER_S at most.
        """
        self.failures_in_a_row += 1
        was_probe, self.is_probing = self.is_probing, False
        if retry_after_s is not None:
            self.open_until_s = now_s + min(retry_after_s, MAX_RETRY_AFTER_S)
        elif was_probe or self.failures_in_a_row >= self.max_failures:
            self.open_until_s = now_s + self.open_s

    def record_undecided(self, now_s: float, flow: str) -> None:
        """Note an error of which it cannot be told whether the request or the endpoint is at fault.

        An endpoint that fails every request fails different clients: as many of them as failures open the
        circuit, two at least, unless a success comes between. Until then another request may be the probe.

        Args:
            now_s: Monotonic seconds.
            flow: Whose request it was (see RequestOptions.flow).
        """
        self.is_probing = False
        self.undecided_flows.add(flow)
        if len(self.undecided_flows) >= max(MIN_DOUBTFUL_FLOWS, self.max_failures):
            self.undecided_flows.clear()
            self.failures_in_a_row = max(self.failures_in_a_row, self.max_failures - 1)
            self.record_failure(now_s)

    def release_probe(self) -> None:
        """Let another request be the probe: this one ended without a result (the client left)."""
        self.is_probing = False

    def retry_in_s(self, now_s: float) -> float:
        """Return the seconds until a request may try again; 0 = now."""
        return 0.0 if self.open_until_s is None else max(0.0, self.open_until_s - now_s)

    def state(self, now_s: float) -> Literal["closed", "open", "half_open"]:
        """Return the circuit's state."""
        if self.open_until_s is None:
            return "closed"
        return "open" if now_s < self.open_until_s else "half_open"
