"""What every port takes besides its service: /_truth, /_fault, /_clock, /_pay.

GET    /_truth     what really runs, what it cost, what happened
GET    /_fault     the faults that wait, and the kinds that there are
POST   /_fault     add one: {"service", "kind", "route", "times" or "probability", …}
DELETE /_fault     remove all, or one: ?id=3
GET    /_clock     the time
POST   /_clock     {"advance_s": seconds} and, or, {"speed": factor}
POST   /_pay       {"service": "stripe" or "chain", …}: do what a customer does
"""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from aiohttp import web

from appliance.base import jsons
from appliance.base.clock import format_rfc3339
from appliance.base.errors import Invalid, NotFound
from appliance.base.money import shorten
from appliance.simulate.faults import KINDS, Faults, read_number
from appliance.simulate.rented_engines import read_body
from appliance.simulate.twin_clock import MAX_ADVANCE_S, MAX_SPEED, TwinClock

CLOCK_FIELDS = ("advance_s", "speed")
Answering = Callable[[web.Request], Awaitable[Any]]


class TwinControl:
    """The handlers.

    Args:
        clock: The twin's.
        faults: What is to go wrong.
        settle: Brings all services and engines up to the present time.
        truth: Returns what really is.
        payers: Service → what its customer does.
    """

    def __init__(
        self,
        clock: TwinClock,
        faults: Faults,
        *,
        settle: Callable[[], Awaitable[None]],
        truth: Callable[[], dict[str, Any]],
        payers: Mapping[str, Callable[[dict[str, Any]], dict[str, Any]]],
    ) -> None:
        self._clock = clock
        self._faults = faults
        self._settle = settle
        self._truth = truth
        self._payers = payers

    def routes(self) -> list[web.RouteDef]:
        """Return the addresses."""
        return [
            web.get("/_truth", _answering(self.show_truth)),
            web.get("/_fault", _answering(self.list_faults)),
            web.post("/_fault", _answering(self.add_fault)),
            web.delete("/_fault", _answering(self.clear_faults)),
            web.get("/_clock", _answering(self.show_clock)),
            web.post("/_clock", _answering(self.set_clock)),
            web.post("/_pay", _answering(self.pay)),
        ]

    async def show_truth(self, request: web.Request) -> Any:
        """Return what really is."""
        await self._settle()
        return self._truth()

    async def list_faults(self, request: web.Request) -> Any:
        """Return the faults that wait, and the kinds."""
        kinds = {
            name: {
                "what": kind.what,
                "services": kind.services,
                "routes": kind.routes or ["*"],
                "parameters": dict(kind.defaults or {}),
            }
            for name, kind in KINDS.items()
        }
        return {"waiting": self._faults.as_list(), "kinds": kinds}

    async def add_fault(self, request: web.Request) -> Any:
        """Add a fault."""
        fault = self._faults.add(await read_body(request))
        await self._settle()
        return fault.as_object()

    async def clear_faults(self, request: web.Request) -> Any:
        """Remove all faults, or one."""
        text = request.query.get("id")
        if text is not None and not (text.isdecimal() and len(text) < 16):
            raise Invalid(f"`id` is {shorten(text)}; allowed is the id of a fault.")
        return {"removed": self._faults.clear(None if text is None else int(text))}

    async def show_clock(self, request: web.Request) -> Any:
        """Return the time."""
        now_s = self._clock.now_s()
        return {"now": format_rfc3339(now_s), "now_s": now_s, "speed": self._clock.speed}

    async def set_clock(self, request: web.Request) -> Any:
        """Move the time on, or change its speed."""
        body = await read_body(request)
        if not body or (unknown := [name for name in body if name not in CLOCK_FIELDS]):
            shown = shorten(unknown[0]) if body else "nothing"
            raise Invalid(f"{shown} is no field of the clock; there are {', '.join(CLOCK_FIELDS)}.")
        await self._settle()
        if "speed" in body:
            speed = read_number(body["speed"], "speed", 0, MAX_SPEED)
        if "advance_s" in body:
            self._clock.advance(read_number(body["advance_s"], "advance_s", 0, MAX_ADVANCE_S))
        if "speed" in body:
            self._clock.set_speed(speed)
        await self._settle()
        return await self.show_clock(request)

    async def pay(self, request: web.Request) -> Any:
        """Do what a customer does."""
        await self._settle()
        body = await read_body(request)
        name = body.get("service")
        if not isinstance(name, str) or name not in self._payers:
            allowed = ", ".join(self._payers) or "none that runs"
            raise Invalid(f"`service` is {shorten(name)}; allowed are {allowed}.", param="service")
        return self._payers[name](body)


def _answering(handler: Answering) -> Callable[[web.Request], Awaitable[web.Response]]:
    """Answer what a handler returns as JSON, and a wrong request with 400."""

    async def answer(request: web.Request) -> web.Response:
        try:
            status, value = 200, await handler(request)
        except (Invalid, NotFound) as exc:
            status, value = 400, {"error": {"message": str(exc), "param": exc.param}}
        body = jsons.dumps({**value, "simulated": True})
        return web.Response(status=status, body=body, content_type="application/json")

    return answer
