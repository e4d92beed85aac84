"""Stripe's events on their way: signed, repeated after a failure, doubled, out of order, lost."""

import asyncio
import hashlib
import hmac
from collections import deque
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from appliance.base import jsons
from appliance.base.clock import Clock
from appliance.base.errors import ApplianceError, Invalid
from appliance.base.http import HttpClient
from appliance.base.logs import get_logger
from appliance.base.money import shorten
from appliance.simulate.faults import Faults
from appliance.simulate.loopback import is_loopback

log = get_logger("simulate")
RETRIES_S = (10, 60, 300, 1800, 7200, 21_600, 43_200, 86_400, 86_400)  # 3 days in all, as Stripe's
TIMEOUT_S = 10.0
MAX_WAITING = 1000
MAX_AT_ONCE = 20
KINDS = ("webhook_twice", "webhook_late", "webhook_lost", "webhook_bad_signature")


@dataclass(slots=True)
class WebhookEndpoint:
    """Where events go."""

    id: str
    url: str
    secret: str = field(repr=False)
    types: tuple[str, ...]  # ("*",) = all


@dataclass(slots=True)
class Delivery:
    """One event for one endpoint.

    Attributes:
        due_ms: When it is sent next, by the twin's clock.
        attempts: How often it was sent.
        is_late: It waits until a younger one was delivered.
    """

    event: dict[str, Any]
    endpoint: WebhookEndpoint
    due_ms: int
    attempts: int = 0
    is_late: bool = False
    is_badly_signed: bool = False
    statuses: list[int] = field(default_factory=list)


def check_url(url: str) -> str:
    """Return an address that events may go to: one of this machine.

    Raises:
        Invalid: It is none; a simulation sends nothing elsewhere.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not is_loopback(parts.hostname or ""):
        text = f"Invalid URL {shorten(url)}: the simulation sends events to addresses of this machine alone"
        raise Invalid(text, param="url")
    return url


def sign(payload: bytes, secret: str, at_s: int) -> str:
    """Return the header Stripe-Signature of a payload."""
    signed = hmac.new(secret.encode(), b"%d." % at_s + payload, hashlib.sha256).hexdigest()
    return f"t={at_s},v1={signed}"


class Webhooks:
    """The events on their way.

    Args:
        faults: Some double, delay or lose an event.
        signing: The time of signatures; the receiver's own clock checks it.
    """

    def __init__(self, faults: Faults, *, signing: Clock) -> None:
        self._faults = faults
        self._signing = signing
        self.endpoints: dict[str, WebhookEndpoint] = {}
        self._waiting: list[Delivery] = []
        self.done: deque[dict[str, Any]] = deque(maxlen=MAX_WAITING)
        self._http = HttpClient(refusal_reason=_why_not)
        self._turn = asyncio.Lock()

    def add(self, event: dict[str, Any], now_ms: int) -> None:
        """Send an event to all endpoints that want its type."""
        for endpoint in self.endpoints.values():
            if "*" not in endpoint.types and event["type"] not in endpoint.types:
                continue
            fault = self._faults.take("stripe", "webhook", KINDS)
            kind = fault.kind if fault is not None else ""
            if kind == "webhook_lost" or len(self._waiting) >= MAX_WAITING:
                self._note(Delivery(event, endpoint, now_ms), "lost")
                continue
            first = Delivery(event, endpoint, now_ms, is_late=kind == "webhook_late")
            first.is_badly_signed = kind == "webhook_bad_signature"
            self._waiting.append(first)
            if kind == "webhook_twice":
                self._waiting.append(Delivery(event, endpoint, now_ms))

    async def deliver(self, now_ms: int) -> None:
        """Send what is due, one after another; one that fails is sent again later."""
        async with self._turn:
            for _ in range(MAX_AT_ONCE):
                delivery = self._next(now_ms)
                if delivery is None:
                    return
                await self._attempt(delivery, now_ms)

    def _next(self, now_ms: int) -> Delivery | None:
        for delivery in self._waiting:
            if delivery.due_ms <= now_ms and not delivery.is_late:
                return delivery
        return None

    async def _attempt(self, delivery: Delivery, now_ms: int) -> None:
        delivery.attempts += 1
        status = await self._post(delivery)
        delivery.statuses.append(status)
        if 200 <= status < 300:
            self._waiting.remove(delivery)
            self._note(delivery, "delivered")
            for other in self._waiting:  # a younger one has come first
                other.is_late = other.is_late and other.endpoint is not delivery.endpoint
        elif delivery.attempts > len(RETRIES_S):
            self._waiting.remove(delivery)
            self._note(delivery, "given_up")
        else:
            delivery.due_ms = now_ms + RETRIES_S[delivery.attempts - 1] * 1000

    async def _post(self, delivery: Delivery) -> int:
        """Send an event; return the status, 0 = no answer."""
        off = self._faults.find("stripe", "clock_off")
        at_s = int(self._signing.now_s() + (off.parameters["seconds"] if off is not None else 0))
        payload = jsons.dumps_pretty(delivery.event).encode()
        secret = "whsec_wrong" if delivery.is_badly_signed else delivery.endpoint.secret
        delivery.is_badly_signed = False
        headers = [
            ("Content-Type", "application/json; charset=utf-8"),
            ("Stripe-Signature", sign(payload, secret, at_s)),
            ("X-Simulated", "1"),
        ]
        url = delivery.endpoint.url
        try:
            response = await self._http.open(
                "POST",
                url,
                headers=headers,
                body=payload,
                is_repeatable=False,
                connect_s=TIMEOUT_S,
                first_byte_s=TIMEOUT_S,
            )
        except ApplianceError as exc:
            log.info("webhook_failed", url=url, reason=str(exc)[:200])
            return 0
        response.close()
        return response.status

    def _note(self, delivery: Delivery, outcome: str) -> None:
        event = delivery.event
        self.done.append(
            {
                "event": event["id"],
                "type": event["type"],
                "outcome": outcome,
                "statuses": delivery.statuses,
            }
        )

    def truth(self) -> dict[str, Any]:
        """Return what was delivered and what waits."""
        waiting = [
            {"event": each.event["id"], "type": each.event["type"], "statuses": each.statuses}
            for each in self._waiting
        ]
        return {"delivered": list(self.done), "waiting": waiting}

    async def close(self) -> None:
        """Close the connections."""
        await self._http.close()


def _why_not(address: str) -> str:
    """Return why events may not go to an address; "" = they may."""
    return "" if is_loopback(address) else "it is no address of this machine"
