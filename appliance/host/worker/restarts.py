"""When a worker that exited is started again: growing pauses, jitter, and an end if it only crashes. Pure."""

from dataclasses import dataclass


@dataclass(slots=True)
class RestartPolicy:
    """The history that decides.

    Crashes are counted in a row, not in a window of time: the pauses between them grow, so a window would
    never hold enough of them.

    Attributes:
        first_s: The first pause.
        longest_s: The longest pause.
        crash_limit: After so many crashes in a row there is no restart.
        steady_s: A run of at least this long is no crash, and makes the pauses short again.
        failures: Crashes in a row so far.
    """

    first_s: float = 5.0
    longest_s: float = 300.0
    crash_limit: int = 10
    steady_s: float = 60.0
    failures: int = 0

    def next_pause(self, *, ran_s: float, jitter: float) -> float | None:
        """Compute the pause before the next start.

        1. it ran steadily             → the count starts again
        2. too many crashes in a row   → None
        3. else                        → first_s, doubled with each crash, up to longest_s, ± 25 %

        Args:
            ran_s: How long the last run lasted.
            jitter: A random number from 0 to 1.

        Returns:
            Seconds; None = no more restarts.
        """
        if ran_s >= self.steady_s:  # 1
            self.failures = 0
        self.failures += 1
        if self.failures >= self.crash_limit:  # 2
            return None
        pause_s = min(self.first_s * 2.0 ** min(self.failures - 1, 20), self.longest_s)  # 3
        return pause_s * (0.75 + jitter / 2)

    def reset(self) -> None:
        """Forget all crashes."""
        self.failures = 0
