"""When a worker that ended is started again: growing pauses, jitter, and an end when it only crashes. Pure."""

from dataclasses import dataclass


@dataclass(slots=True)
class RestartPolicy:
    """The history that decides. Seconds; `steady_s`: a run at least so long is no crash, and makes the pauses short again.

    Crashes are counted in a row, not in a window of time: the pauses between them grow, so that a window would never hold enough.
    """

    first_s: float = 5.0
    longest_s: float = 300.0
    crash_limit: int = 10
    steady_s: float = 60.0
    failures: int = 0

    def next_pause(self, *, ran_s: float, jitter: float) -> float | None:
        """Say how long to wait before the next start; None = no more: it only crashes.

        Takes   ran_s: how long the last run lasted; jitter: a random number from 0 to 1

        1. it ran steadily              → count anew
        2. too many crashes in a row    → None
        3. else                         → first_s doubled with each end, up to longest_s, give or take a quarter
        """
        if ran_s >= self.steady_s:  # 1
            self.failures = 0
        self.failures += 1
        if self.failures >= self.crash_limit:  # 2
            return None
        pause_s = min(self.first_s * 2.0 ** min(self.failures - 1, 20), self.longest_s)  # 3
        return pause_s * (0.75 + jitter / 2)

    def reset(self) -> None:
        self.failures = 0
