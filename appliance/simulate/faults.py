"""Which faults there are, which of them are waiting, and which one a request gets."""

import math
import random
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from appliance.base.errors import Invalid
from appliance.base.money import shorten

MAX_FAULTS = 200
MAX_TIMES = 100_000
MARKETS = ("vast", "ionet")
CHATS = ("chat", "completions")
HTTP = ("vast", "ionet", "novita", "stripe", "chain")


class Phase(Enum):
    """Where a fault comes in."""

    INSTEAD = "instead of the answer: nothing was done"
    AFTER = "after it was done: the caller does not learn it in time, or at all"
    ANSWER = "in what the answer says"
    STATE = "in what happens, not in an answer"


@dataclass(frozen=True, slots=True)
class FaultKind:
    """One kind of fault.

    Attributes:
        what: For people.
        routes: Which requests it is for where `route` is not given; () = all.
        services: Which services have it.
        defaults: Its parameters with their defaults: `seconds`, `status`, `bytes`, `blocks`.
    """

    what: str
    phase: Phase
    routes: tuple[str, ...] = ()
    services: tuple[str, ...] = HTTP
    defaults: Mapping[str, float] | None = None


KINDS: dict[str, FaultKind] = {
    "empty_body": FaultKind("status 200 and nothing", Phase.INSTEAD),
    "html_page": FaultKind("status 200 and a page of HTML", Phase.INSTEAD),
    "status": FaultKind(
        "this status, an error in the service's form", Phase.INSTEAD, (), HTTP, {"status": 500}
    ),
    "rate_limited_text": FaultKind(
        "429 in plain text; Retry-After where `seconds` is not 0", Phase.INSTEAD, (), HTTP, {"seconds": 0}
    ),
    "reset": FaultKind("the connection is reset", Phase.INSTEAD),
    "huge_body": FaultKind("status 200 and that many bytes", Phase.INSTEAD, (), HTTP, {"bytes": 64 * 2**20}),
    "slow": FaultKind(
        "real seconds before it is done and answered", Phase.INSTEAD, (), HTTP, {"seconds": 30}
    ),
    "wrong_types": FaultKind("numbers are text, lists are objects", Phase.ANSWER),
    "done_500": FaultKind("done, answered 500", Phase.AFTER, (), ("stripe",)),
    "webhook_twice": FaultKind("an event comes twice", Phase.STATE, ("webhook",), ("stripe",)),
    "webhook_late": FaultKind("an event comes after a younger one", Phase.STATE, ("webhook",), ("stripe",)),
    "webhook_lost": FaultKind("an event never comes", Phase.STATE, ("webhook",), ("stripe",)),
    "webhook_bad_signature": FaultKind(
        "an event is wrongly signed at first", Phase.STATE, ("webhook",), ("stripe",)
    ),
    "rpc_error": FaultKind("an error in JSON-RPC's form", Phase.ANSWER, (), ("chain",)),
    "too_many_logs": FaultKind(
        "eth_getLogs: the answer would be too large", Phase.ANSWER, ("eth_getLogs",), ("chain",)
    ),
    "reorg": FaultKind(
        "that many of the newest blocks become others; what was paid in them is mined again",
        Phase.STATE,
        ("state",),
        ("chain",),
        {"blocks": 3},
    ),
    "reorg_drop": FaultKind(
        "that many of the newest blocks become others; what was paid in them is gone",
        Phase.STATE,
        ("state",),
        ("chain",),
        {"blocks": 3},
    ),
    "behind": FaultKind(
        "the node lags that many blocks, until the fault is removed",
        Phase.STATE,
        ("state",),
        ("chain",),
        {"blocks": 20},
    ),
    "no_finalized": FaultKind(
        "the node does not know `finalized`, until the fault is removed", Phase.STATE, ("state",), ("chain",)
    ),
    "cut_stream": FaultKind("the stream breaks off after 2 events", Phase.ANSWER, CHATS, ("novita",)),
    "stall": FaultKind("the stream falls silent after 2 events", Phase.ANSWER, CHATS, ("novita",)),
    "error_event": FaultKind("an error in the stream after 2 events", Phase.ANSWER, CHATS, ("novita",)),
    "success_false": FaultKind("status 200, success is false", Phase.INSTEAD, (), ("vast",)),
    "gone_410": FaultKind("410 deprecated_endpoint", Phase.INSTEAD, ("list",), ("vast",)),
    "auth_error_404": FaultKind(
        "404 with error auth_error, as for a wrong key", Phase.INSTEAD, (), ("vast",)
    ),
    "search_quota": FaultKind("429 search_quota_exceeded", Phase.INSTEAD, ("search",), ("vast",)),
    "page_2_fails": FaultKind("pages after the first one answer 500", Phase.INSTEAD, ("list",), MARKETS),
    "no_such_ask": FaultKind(
        "another customer has the offer", Phase.INSTEAD, ("create",), MARKETS, {"status": 410}
    ),
    "create_timed_out": FaultKind(
        "created, answered after real seconds", Phase.AFTER, ("create",), MARKETS, {"seconds": 60}
    ),
    "create_500_done": FaultKind("created, answered 500", Phase.AFTER, ("create",), MARKETS),
    "destroy_fails": FaultKind("500, and it lives on", Phase.INSTEAD, ("destroy",), MARKETS),
    "destroy_lies": FaultKind("success, and it lives on", Phase.STATE, ("destroy",), MARKETS),
    "stuck_loading": FaultKind("an instance never runs", Phase.STATE, ("state",), MARKETS),
    "exits": FaultKind(
        "an instance that runs ends by itself, after seconds of the twin's clock",
        Phase.STATE,
        ("state",),
        MARKETS,
        {"seconds": 0},
    ),
    "clock_off": FaultKind(
        "its clock is wrong, until the fault is removed",
        Phase.STATE,
        ("state",),
        (*MARKETS, "stripe"),
        {"seconds": 300},
    ),
}
LIMITS: dict[str, tuple[float, float]] = {
    "seconds": (-86_400, 86_400),
    "status": (400, 599),
    "bytes": (1, 2**30),
    "blocks": (1, 1000),
}
LASTING = ("clock_off", "behind", "no_finalized")  # until they are removed
MAX_REAL_SECONDS = 600
REAL_TIME_KINDS = ("slow", "create_timed_out", "rate_limited_text")
FIELDS = ("service", "route", "kind", "times", "probability", *LIMITS)


@dataclass(slots=True)
class Fault:
    """One fault that waits.

    Attributes:
        routes: The names of the requests that get it; () = all.
        times_left: How often it is still to happen; None = by probability, until it is removed.
        parameters: See FaultKind.
        happened: How often it has.
    """

    id: int
    service: str
    kind: str
    routes: tuple[str, ...]
    times_left: int | None
    probability: float
    parameters: dict[str, float]
    happened: int = 0

    def as_object(self) -> dict[str, Any]:
        """Return it ready for JSON."""
        return {
            "id": self.id,
            "service": self.service,
            "kind": self.kind,
            "route": ",".join(self.routes) or "*",
            "times_left": self.times_left,
            "probability": self.probability,
            "happened": self.happened,
            **{name: int(value) if value == int(value) else value for name, value in self.parameters.items()},
        }


class Faults:
    """The faults that wait, in the order in which they were asked for.

    Args:
        routes: Service → the names of its routes.
        seed: Of the chances.
    """

    def __init__(self, routes: Mapping[str, Collection[str]], *, seed: int = 0) -> None:
        self._routes = routes
        self._random = random.Random(seed)
        self._waiting: list[Fault] = []
        self._number = 0

    def add(self, wanted: Any) -> Fault:
        """Take a fault as `POST /_fault` describes it.

        Raises:
            Invalid: A field is wrong; the text says what is allowed.
        """
        if not isinstance(wanted, dict):
            raise Invalid(f"A fault is an object such as {EXAMPLE}, not {shorten(wanted)}.")
        if unknown := [str(name) for name in wanted if name not in FIELDS]:
            raise Invalid(f"{shorten(unknown[0])} is no field of a fault; there are {', '.join(FIELDS)}.")
        if len(self._waiting) >= MAX_FAULTS:
            raise Invalid(f"{MAX_FAULTS} faults are waiting already; remove some with DELETE /_fault.")
        service = _one_of(wanted.get("service"), "service", list(self._routes))
        kind = _one_of(wanted.get("kind"), "kind", [k for k in KINDS if service in KINDS[k].services])
        routes = self._read_route(service, wanted.get("route"), KINDS[kind])
        times, probability = _read_chance(wanted)
        parameters = _read_parameters(wanted, kind)
        if kind in LASTING:
            times, probability = None, 1.0
        self._number += 1
        fault = Fault(self._number, service, kind, routes, times, probability, parameters)
        self._waiting.append(fault)
        return fault

    def _read_route(self, service: str, wanted: Any, kind: FaultKind) -> tuple[str, ...]:
        if kind.phase is Phase.STATE:
            if wanted not in (None, "*", *kind.routes):
                raise Invalid(f"`route` {shorten(wanted)}: this kind has none; leave it out.")
            return kind.routes
        if wanted is None:
            return kind.routes
        if wanted == "*":
            return ()
        return (_one_of(wanted, "route", sorted(self._routes[service])),)

    def clear(self, number: int | None = None) -> int:
        """Remove one fault by its id, or all; return how many."""
        kept = [fault for fault in self._waiting if number is not None and fault.id != number]
        removed = len(self._waiting) - len(kept)
        self._waiting = kept
        return removed

    def take(self, service: str, route: str, kinds: Collection[str]) -> Fault | None:
        """Return the first fault of these kinds that happens now, and count it."""
        for fault in self._waiting:
            fits = fault.service == service and fault.kind in kinds
            if not fits or (fault.routes and route not in fault.routes):
                continue
            if fault.times_left is None and self._random.random() >= fault.probability:
                continue
            fault.happened += 1
            if fault.times_left is not None:
                fault.times_left -= 1
                if not fault.times_left:
                    self._waiting.remove(fault)
            return fault
        return None

    def find(self, service: str, kind: str) -> Fault | None:
        """Return the newest waiting fault of a kind, without counting it."""
        found = [fault for fault in self._waiting if fault.service == service and fault.kind == kind]
        return found[-1] if found else None

    def as_list(self) -> list[dict[str, Any]]:
        """Return what waits, ready for JSON."""
        return [fault.as_object() for fault in self._waiting]


EXAMPLE = '{"service": "vast", "route": "list", "kind": "empty_body", "times": 1}'


def _one_of(value: Any, name: str, allowed: list[str]) -> str:
    if not isinstance(value, str) or value not in allowed:
        raise Invalid(f"`{name}` is {shorten(value)}; allowed are {', '.join(allowed)}.", param=name)
    return value


def read_number(value: Any, name: str, least: float, most: float) -> float:
    """Read a finite number within limits.

    Raises:
        Invalid: It is none.
    """
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not is_number or not least <= value <= most:
        raise Invalid(
            f"`{name}` is {shorten(value)}; allowed is a number from {least:g} to {most:g}.", param=name
        )
    return float(value)


def _read_chance(wanted: dict[str, Any]) -> tuple[int | None, float]:
    if "times" in wanted and "probability" in wanted:
        raise Invalid("Give `times` or `probability`, not both.", param="probability")
    if "probability" in wanted:
        return None, read_number(wanted["probability"], "probability", 0, 1)
    times = read_number(wanted.get("times", 1), "times", 1, MAX_TIMES)
    if times != int(times):
        raise Invalid(
            f"`times` is {times:g}; allowed is a whole number from 1 to {MAX_TIMES}.", param="times"
        )
    return int(times), 1.0


def _read_parameters(wanted: dict[str, Any], kind: str) -> dict[str, float]:
    defaults = KINDS[kind].defaults or {}
    for name in LIMITS:
        if name in wanted and name not in defaults:
            has = ", ".join(defaults) or "none"
            raise Invalid(f"`{name}`: the kind {kind} has no such parameter; it has {has}.", param=name)
    read = {}
    for name, default in defaults.items():
        least, most = LIMITS[name]
        if name == "seconds" and kind != "clock_off":
            least, most = 0, MAX_REAL_SECONDS if kind in REAL_TIME_KINDS else most
        read[name] = read_number(wanted.get(name, default), name, least, most)
    return read
