"""What Stripe's stand-in knows: its objects, and what happens to payments. Amounts are cents."""

import hashlib
from collections import deque
from collections.abc import Callable
from typing import Any

from appliance.base.errors import ApplianceError, Invalid, Kind, NotFound
from appliance.base.money import shorten
from appliance.simulate.stripe_cards import DECLINES, TestCard
from appliance.simulate.twin_clock import TwinClock

MAX_OBJECTS = 5000
MAX_EVENTS = 1000
API_VERSION = "2026-10-28.endive"
StripeObject = dict[str, Any]
CANCELABLE = ("requires_payment_method", "requires_confirmation", "requires_action")


class CardDeclined(ApplianceError):
    """The card's bank refuses; `intent` is the payment that failed."""

    kind = Kind.PAYMENT_REQUIRED

    def __init__(self, decline: str, intent: StripeObject) -> None:
        super().__init__(DECLINES[decline], code="card_declined")
        self.decline = decline
        self.intent = intent


class StripeLedger:
    """Objects by their ids, and the money that moved.

    Args:
        clock: The twin's.
        on_event: Called with each event.
    """

    def __init__(self, clock: TwinClock, on_event: Callable[[StripeObject], None]) -> None:
        self._clock = clock
        self._on_event = on_event
        self._objects: dict[str, StripeObject] = {}
        self._cards: dict[str, TestCard] = {}
        self._number = 0
        self.events: deque[StripeObject] = deque(maxlen=MAX_EVENTS)

    # ---- objects

    def make(self, prefix: str, kind: str, **fields: Any) -> StripeObject:
        """Make an object; its id is not guessed by counting, and the same in each run.

        Raises:
            Invalid: There are too many already.
        """
        if len(self._objects) >= MAX_OBJECTS:
            raise Invalid(f"The simulation keeps {MAX_OBJECTS} objects; start it anew.")
        made = self._new(prefix, kind, fields)
        self._objects[made["id"]] = made
        return made

    def _new(self, prefix: str, kind: str, fields: dict[str, Any]) -> StripeObject:
        self._number += 1
        name = hashlib.sha256(f"{prefix}{self._number}".encode()).hexdigest()[:24]
        head = {"id": f"{prefix}_{name}", "object": kind, "created": self._now_s(), "livemode": False}
        return {**head, **fields}

    def find(self, number: Any, kind: str) -> StripeObject:
        """Return an object.

        Raises:
            NotFound: There is none of this id and kind.
        """
        found = self._objects.get(number) if isinstance(number, str) else None
        if found is None or found["object"] != kind:
            raise NotFound(f"No such {kind}: {shorten(number)}", param="id", code="resource_missing")
        return found

    def all(self, kind: str) -> list[StripeObject]:
        """Return the objects of a kind, the youngest first."""
        return [each for each in reversed(self._objects.values()) if each["object"] == kind]

    def add_card(self, card: TestCard) -> StripeObject:
        """Make a payment method of a card."""
        shown = {"brand": "visa", "last4": card.last4, "exp_month": 12, "exp_year": 2034}
        made = self.make("pm", "payment_method", type="card", card=shown, customer=None, metadata={})
        self._cards[made["id"]] = card
        return made

    def card_of(self, method: str) -> TestCard:
        """Return the card of a payment method."""
        return self._cards[method]

    def _now_s(self) -> int:
        return int(self._clock.now_s())

    def _emit(self, kind: str, about: StripeObject) -> None:
        fields = {"type": kind, "api_version": API_VERSION, "data": {"object": dict(about)}}
        request = {"id": None, "idempotency_key": None}
        event = self._new("evt", "event", {**fields, "pending_webhooks": 1, "request": request})
        self.events.appendleft(event)
        self._on_event(event)

    # ---- payments

    def make_intent(self, amount: int, currency: str, metadata: dict[str, str]) -> StripeObject:
        """Make a payment that has no payment method yet."""
        intent = self.make(
            "pi",
            "payment_intent",
            amount=amount,
            amount_received=0,
            capture_method="automatic_async",
            currency=currency,
            last_payment_error=None,
            latest_charge=None,
            metadata=metadata,
            next_action=None,
            payment_method=None,
            payment_method_types=["card"],
            status="requires_payment_method",
        )
        intent["client_secret"] = f"{intent['id']}_secret_simulated"
        return intent

    def confirm(self, intent: StripeObject) -> StripeObject:
        """Try to pay: it succeeds, needs the owner's word, or is declined.

        Raises:
            CardDeclined: The payment failed; it can be tried with another card.
        """
        card = self.card_of(intent["payment_method"])
        if card.decline:
            self.fail(intent, card.decline)
            raise CardDeclined(card.decline, intent)
        if card.has_3ds:
            step = {"type": "three_d_secure_redirect", "stripe_js": "https://simulated.invalid"}
            intent.update(
                status="requires_action", next_action={"type": "use_stripe_sdk", "use_stripe_sdk": step}
            )
            self._emit("payment_intent.requires_action", intent)
            return intent
        return self.succeed(intent)

    def succeed(self, intent: StripeObject) -> StripeObject:
        """Pay."""
        card = self.card_of(intent["payment_method"])
        charge = self.make(
            "ch",
            "charge",
            amount=intent["amount"],
            amount_refunded=0,
            currency=intent["currency"],
            captured=True,
            disputed=False,
            metadata=dict(intent["metadata"]),
            paid=True,
            payment_intent=intent["id"],
            payment_method=intent["payment_method"],
            refunded=False,
            status="succeeded",
        )
        intent.update(
            status="succeeded",
            next_action=None,
            amount_received=intent["amount"],
            latest_charge=charge["id"],
            last_payment_error=None,
        )
        self._emit("charge.succeeded", charge)
        self._emit("payment_intent.succeeded", intent)
        if card.is_disputed:
            self.dispute(charge)
        return intent

    def fail(self, intent: StripeObject, decline: str) -> None:
        """Note a payment that failed."""
        error = {
            "type": "card_error",
            "code": "card_declined",
            "decline_code": decline,
            "message": DECLINES[decline],
        }
        intent.update(
            status="requires_payment_method", next_action=None, payment_method=None, last_payment_error=error
        )
        self._emit("payment_intent.payment_failed", intent)

    def cancel(self, intent: StripeObject) -> StripeObject:
        """Give a payment up.

        Raises:
            Invalid: It is over already.
        """
        if intent["status"] not in CANCELABLE:
            text = f"You cannot cancel this PaymentIntent because it has a status of {intent['status']}."
            raise Invalid(text, code="payment_intent_unexpected_state")
        intent.update(status="canceled", canceled_at=self._now_s(), next_action=None)
        self._emit("payment_intent.canceled", intent)
        return intent

    # ---- what comes after

    def refund(self, charge: StripeObject, amount: int, metadata: dict[str, str]) -> StripeObject:
        """Give money back.

        Raises:
            Invalid: More than is left.
        """
        left = charge["amount"] - charge["amount_refunded"]
        if amount > left or left == 0:
            text = f"Refund amount ({amount}) is greater than unrefunded amount on charge ({left})"
            raise Invalid(text, param="amount", code="" if left else "charge_already_refunded")
        charge["amount_refunded"] += amount
        charge["refunded"] = charge["amount_refunded"] == charge["amount"]
        refund = self.make(
            "re",
            "refund",
            amount=amount,
            charge=charge["id"],
            currency=charge["currency"],
            metadata=metadata,
            payment_intent=charge["payment_intent"],
            reason=None,
            status="succeeded",
        )
        self._emit("refund.created", refund)
        self._emit("charge.refunded", charge)
        return refund

    def dispute(self, charge: StripeObject) -> StripeObject:
        """Let the card's owner dispute a payment.

        Raises:
            Invalid: It is disputed already.
        """
        if charge["disputed"]:
            raise Invalid(f"The charge {charge['id']} is disputed already.")
        charge["disputed"] = True
        dispute = self.make(
            "dp",
            "dispute",
            amount=charge["amount"],
            charge=charge["id"],
            currency=charge["currency"],
            metadata={},
            payment_intent=charge["payment_intent"],
            reason="fraudulent",
            status="needs_response",
        )
        self._emit("charge.dispute.created", dispute)
        return dispute

    def close_dispute(self, dispute: StripeObject, outcome: str) -> StripeObject:
        """End a dispute: `won` by the merchant, or `lost`.

        Raises:
            Invalid: It is over already.
        """
        if dispute["status"] in ("won", "lost"):
            raise Invalid(f"The dispute {dispute['id']} is {dispute['status']} already.")
        dispute["status"] = outcome
        self._emit("charge.dispute.closed", dispute)
        return dispute

    def finish_session(self, session: StripeObject, outcome: str) -> None:
        """End a Checkout session: `complete` or `expired`."""
        session["status"] = outcome
        if outcome == "complete":
            session["payment_status"] = "paid"
        self._emit(f"checkout.session.{'completed' if outcome == 'complete' else outcome}", session)

    def expire_sessions(self) -> None:
        """End the Checkout sessions whose time is over."""
        now_s = self._now_s()
        for session in self.all("checkout.session"):
            if session["status"] == "open" and session["expires_at"] <= now_s:
                self.finish_session(session, "expired")

    def truth(self) -> dict[str, Any]:
        """Return the sums and the objects, ready for JSON; cents."""
        charges = self.all("charge")
        lost = [each["amount"] for each in self.all("dispute") if each["status"] != "won"]
        return {
            "received_cents": sum(charge["amount"] for charge in charges),
            "refunded_cents": sum(charge["amount_refunded"] for charge in charges),
            "disputed_cents": sum(lost),
            "intents": self.all("payment_intent")[:200],
            "sessions": self.all("checkout.session")[:200],
            "refunds": self.all("refund")[:200],
            "disputes": self.all("dispute")[:200],
        }
