"""A store that may be away: refused while it is, and tried in the background until it can be used again."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar

from appliance.base.tasks import Tasks

PROBE_EVERY_S = 0.5


class ProbedStore(ABC):
    """Whether a store can be used.

    Args:
        tasks: Run what tries it while it is down.
        on_change: Called with True and False when it comes up or goes down.
    """

    probe_name: ClassVar[str]  # of the task that tries it

    def __init__(self, tasks: Tasks, on_change: Callable[[bool], None] | None = None) -> None:
        self._tasks = tasks
        self._on_change = on_change
        self._is_up = False
        self._reason = "it was not opened yet"
        self._is_probing = False
        self._is_closed = False

    @property
    def is_up(self) -> bool:
        """Whether the last use of it worked."""
        return self._is_up

    @property
    def reason(self) -> str:
        """Why it is down; "" = it is up."""
        return "" if self._is_up else self._reason

    @abstractmethod
    async def _try(self) -> None:
        """Use it once.

        Raises:
            Exception: It cannot be used; `_reason_of` tells those that mean so.
        """

    @abstractmethod
    def _reason_of(self, error: Exception) -> str | None:
        """Return why it cannot be used; None = the error means something else."""

    @abstractmethod
    def _log_up(self) -> None:
        """Log that it can be used."""

    @abstractmethod
    def _log_down(self, reason: str) -> None:
        """Log that it cannot be used."""

    def _log_other_reason(self, reason: str) -> None:  # noqa: B027 - not every store logs it
        """Log that it cannot be used for another reason than before."""

    def _note_up(self) -> None:
        if not self._is_up and not self._is_closed:
            self._is_up = True
            self._log_up()
            if self._on_change is not None:
                self._on_change(True)

    def _note_down(self, reason: str) -> None:
        """Refuse its use from now on, and try it in the background."""
        was_up, self._is_up, self._reason = self._is_up, False, reason
        if self._is_closed:
            return
        if not self._is_probing:
            self._is_probing = True
            self._log_down(reason)
            self._tasks.start(self._probe(), name=self.probe_name)
        if was_up and self._on_change is not None:
            self._on_change(False)

    async def _probe(self) -> None:
        """Try it until it can be used again."""
        try:
            while not self._is_closed:
                await asyncio.sleep(PROBE_EVERY_S)
                try:
                    await self._try()
                except Exception as error:
                    reason = self._reason_of(error)
                    if reason is None:
                        raise
                    if reason != self._reason:
                        self._log_other_reason(reason)
                    self._reason = reason
                else:
                    self._note_up()
                    return
        finally:
            self._is_probing = False
