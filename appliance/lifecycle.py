"""The appliance from start to end: its state, the request to stop, the grace for running requests."""

import asyncio

from appliance.base.logs import get_logger
from appliance.base.watch import Watched

log = get_logger("appliance")


class Lifecycle:
    """The state of the process, and the verbs that change it.

    Attributes:
        state: starting, serving, draining or stopping.
        changed: Rises with each change of what the status shows.
        stop_asked: Set when the process is to end.
        hurry: Set when running requests are to be cut off.
        grace_s: Seconds for running requests as asked with the stop; None = as configured.
        exit_code: Of the process.
        warnings: What an operator should know, in the order in which it was found.
    """

    def __init__(self, warnings: list[str]) -> None:
        self.state: Watched[str] = Watched("starting")
        self.changed: Watched[int] = Watched(0)
        self.stop_asked = asyncio.Event()
        self.hurry = asyncio.Event()
        self.grace_s: float | None = None
        self.exit_code = 0
        self.warnings = warnings

    @property
    def is_serving(self) -> bool:
        """Whether new requests are taken."""
        return self.state.value == "serving"

    def set_state(self, state: str) -> None:
        """Change the state, log it and tell those who follow the status."""
        if state != self.state.value:
            log.info("state", state=state)
            self.state.set(state)
            self.mark_changed()

    def mark_changed(self) -> None:
        """Tell those who follow the status that it has changed."""
        self.changed.set(self.changed.value + 1)

    def drain(self) -> None:
        """Take no new requests; running ones go on."""
        if self.is_serving:
            self.set_state("draining")

    def resume(self) -> None:
        """Take requests again after `drain`."""
        if self.state.value == "draining":
            self.set_state("serving")

    def shutdown(self, grace_s: float | None = None) -> None:
        """Ask for the end; a second call cuts off running requests.

        Args:
            grace_s: Seconds for running requests; None = as configured.
        """
        if self.stop_asked.is_set():
            self.hurry.set()
        self.grace_s = grace_s
        self.stop_asked.set()

    def task_died(self, name: str, error: BaseException) -> None:
        """End the process with an error: a background task that should run on has ended."""
        self.warnings.append(f"the background task {name} died: {error!r}")
        self.exit_code = 1
        self.shutdown()
