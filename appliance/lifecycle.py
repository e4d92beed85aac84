"""The state of the process, the requests to stop it or to reload, the grace period of running requests."""

import asyncio

from appliance.base.logs import get_logger
from appliance.base.watch import Watched

log = get_logger("appliance")


class Lifecycle:
    """The state of the process, and the verbs that change it.

    Attributes:
        state: starting, serving, draining or stopping.
        changed: Rises with each change of what the status shows.
        stop_requested: Set when the process is to stop.
        hurry: Set when running requests are to be cut off.
        reload_requested: Set when the settings are to be read again; cleared when that begins.
        grace_s: The grace period that was requested with the stop, in seconds; None = as configured.
        exit_code: Of the process.
        warnings: Warnings for the operator, in the order in which they were found; at first those about the
            settings.
    """

    def __init__(self, warnings: list[str]) -> None:
        self.state: Watched[str] = Watched("starting")
        self.changed: Watched[int] = Watched(0)
        self.stop_requested = asyncio.Event()
        self.hurry = asyncio.Event()
        self.reload_requested = asyncio.Event()
        self.grace_s: float | None = None
        self.exit_code = 0
        self.warnings = warnings
        self._of_settings = list(warnings)

    @property
    def is_serving(self) -> bool:
        """Whether new requests are taken."""
        return self.state.value == "serving"

    def set_state(self, state: str) -> None:
        """Change the state, log it and notify followers of the status."""
        if state != self.state.value:
            log.info("state", state=state)
            self.state.set(state)
            self.mark_changed()

    def mark_changed(self) -> None:
        """Notify followers of the status that it has changed."""
        self.changed.set(self.changed.value + 1)

    def warn_of_settings(self, texts: list[str]) -> None:
        """Show these warnings about the settings instead of those before."""
        if texts == self._of_settings:
            return
        others = [text for text in self.warnings if text not in self._of_settings and text not in texts]
        self.warnings[:] = [*texts, *others]
        self._of_settings = list(texts)
        self.mark_changed()

    def drain(self) -> None:
        """Take no new requests; running ones go on."""
        if self.is_serving:
            self.set_state("draining")

    def resume(self) -> None:
        """Take requests again after `drain`."""
        if self.state.value == "draining":
            self.set_state("serving")

    def shutdown(self, grace_s: float | None = None) -> None:
        """Request the stop of the process; a second call cuts off running requests.

        Args:
            grace_s: The grace period of running requests, in seconds; None = as configured.
        """
        if self.stop_requested.is_set():
            self.hurry.set()
        self.grace_s = grace_s
        self.stop_requested.set()

    def task_died(self, name: str, error: BaseException) -> None:
        """Stop the process with exit code 1: a background task died."""
        self.warnings.append(f"the background task {name} died: {error!r}")
        self.exit_code = 1
        self.shutdown()
