"""Waits until an instance is ready, and says what goes on meanwhile."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, TextIO

from appliance.cli.screen import clean
from appliance.gpuproxy_client.api import ApiClient, ApiFailure
from appliance.gpuproxy_client.output import rows_of, text_of

EVERY_S: Final = 3.0
PATIENCE_S: Final = 3600.0  # the appliance itself gives up earlier: RENT_START_S
FAULTS: Final = 5  # in a row; one restart of the appliance is waited for
READY: Final = ("ready",)
ENDED: Final = ("gone", "failed", "lost", "destroying", "draining")


@dataclass(slots=True)
class StartWatch:
    """Watches rentals.

    Attributes:
        api: The appliance.
        out: Where the progress goes: one line that is written anew.
        sleep: Waits some seconds.
        now_s: Monotonic.
    """

    api: ApiClient
    out: TextIO
    sleep: Callable[[float], None] = time.sleep
    now_s: Callable[[], float] = time.monotonic
    _shown: int = field(default=0)

    def wait(self, rental_id: str) -> dict[str, Any]:
        """Return the rental when it is ready, or has ended.

        Raises:
            ApiFailure: The appliance does not answer, or does not know the rental any more.
        """
        try:
            return self._wait(rental_id)
        finally:  # Ctrl-C, too
            self._clear()

    def _wait(self, rental_id: str) -> dict[str, Any]:
        began_s, faults = self.now_s(), 0
        while True:
            try:
                rental = self._rental(rental_id)
                faults = 0
            except ApiFailure as failure:
                faults += 1
                if failure.status not in (0, 429, 502, 503, 504) or faults >= FAULTS:
                    raise
                rental = {"state": "not known: the appliance does not answer"}
            state, took_s = text_of(rental.get("state")), self.now_s() - began_s
            if state in READY or state in ENDED:
                return rental
            if took_s > PATIENCE_S:
                raise ApiFailure(f"After {took_s:.0f} s the instance is still not ready ({state}).")
            self._show(f"{state} … {took_s:.0f} s")
            self.sleep(EVERY_S)

    def _rental(self, rental_id: str) -> dict[str, Any]:
        found = rows_of(self.api.call("GET", "/gpu/rentals", query={"limit": 1000}), "rentals")
        for rental in found:
            if rental.get("id") == rental_id:
                return rental
        raise ApiFailure("The appliance does not know this rental any more.", status=404)

    def _show(self, text: str) -> None:
        line = clean(text).replace("\n", " ")[:100]
        self.out.write("\r" + line.ljust(self._shown))
        self.out.flush()
        self._shown = len(line)

    def _clear(self) -> None:
        if self._shown:
            self.out.write("\r" + " " * self._shown + "\r")
            self.out.flush()
            self._shown = 0
