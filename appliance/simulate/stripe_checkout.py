"""Stripe's Checkout: its sessions, and the page on which a customer would pay."""

import html
from typing import Any

from aiohttp import web

from appliance.base.errors import ApplianceError, Invalid
from appliance.simulate.stripe_cards import CARDS
from appliance.simulate.stripe_forms import (
    LEAST_CENTS,
    MAX_CENTS,
    read_metadata,
    read_url,
    read_whole,
    read_word,
)
from appliance.simulate.stripe_ledger import StripeLedger, StripeObject
from appliance.simulate.twin_clock import TwinClock

SESSION_S = 86_400
MAX_QUANTITY = 1000
PAGE = """<!DOCTYPE html><html><head><title>Checkout (simulated)</title></head><body>
<h1>Simulated checkout</h1>
<p>{amount} {currency}. Nothing is paid: this page belongs to `appliance simulate`.</p>
<form method="post"><button name="outcome" value="paid">Pay</button>
<button name="outcome" value="declined">Be declined</button></form><p><a href="{cancel}">Cancel</a></p>
</body></html>"""


class StripeCheckout:
    """Checkout sessions.

    Args:
        ledger: What Stripe's stand-in knows.
        clock: The twin's.
    """

    def __init__(self, ledger: StripeLedger, clock: TwinClock) -> None:
        self._ledger = ledger
        self._clock = clock
        self._metadata: dict[str, dict[str, str]] = {}  # of the payments of sessions

    def create(self, form: dict[str, Any], *, origin: str) -> StripeObject:
        """Make a session; its page is below `origin`.

        Raises:
            Invalid: A field of the form is missing or wrong.
        """
        if read_word(form, "mode") != "payment":
            raise Invalid("The simulation has the mode `payment` alone.", param="mode")
        total, currency = _sum_items(form.get("line_items"))
        if not LEAST_CENTS <= total <= MAX_CENTS:
            text = f"The amount must be from {LEAST_CENTS} to {MAX_CENTS} cents: {total}"
            raise Invalid(text, code="amount_too_small")
        inner = form.get("payment_intent_data")
        payment_metadata = read_metadata(inner if isinstance(inner, dict) else {})
        session = self._ledger.make(
            "cs_test",
            "checkout.session",
            amount_total=total,
            cancel_url=read_url(form, "cancel_url", is_needed=False),
            client_reference_id=form.get("client_reference_id"),
            currency=currency,
            expires_at=int(self._clock.now_s()) + SESSION_S,
            metadata=read_metadata(form),
            mode="payment",
            payment_intent=None,
            payment_status="unpaid",
            status="open",
            success_url=read_url(form, "success_url", is_needed=True),
        )
        self._metadata[session["id"]] = payment_metadata
        session["url"] = f"{origin}/pay/{session['id']}"
        return session

    def expire(self, number: Any) -> StripeObject:
        """End a session that is open.

        Raises:
            Invalid: It is not open.
            NotFound: There is none of this id.
        """
        session = self._find_open(number)
        self._ledger.finish_session(session, "expired")
        return session

    def pay(self, number: Any, *, is_good: bool) -> StripeObject:
        """Let the customer pay with a good card, or with one that is declined, which leaves the session open.

        Raises:
            CardDeclined: It was declined.
            Invalid: It is not open.
            NotFound: There is none of this id.
        """
        session = self._find_open(number)
        method = self._ledger.add_card(CARDS["visa" if is_good else "chargeDeclined"])
        metadata = self._metadata[session["id"]]
        intent = self._ledger.make_intent(session["amount_total"], session["currency"], metadata)
        intent["payment_method"] = method["id"]
        self._ledger.confirm(intent)
        session["payment_intent"] = intent["id"]
        self._ledger.finish_session(session, "complete")
        return session

    async def show_page(self, number: str, request: web.Request) -> web.StreamResponse:
        """Show the page on which a customer would pay."""
        try:
            session = self._find_open(number)
        except ApplianceError as exc:
            return web.Response(status=404, text=f"simulated: {exc}")
        amount = f"{session['amount_total'] / 100:.2f}"
        cancel = html.escape(str(session["cancel_url"] or "/"))
        text = PAGE.format(amount=amount, currency=html.escape(session["currency"]), cancel=cancel)
        return web.Response(text=text, content_type="text/html")

    def _find_open(self, number: Any) -> StripeObject:
        session = self._ledger.find(number, "checkout.session")
        if session["status"] != "open":
            raise Invalid(f"This Checkout Session is {session['status']}.")
        return session


def _sum_items(items: Any) -> tuple[int, str]:
    """Return (cents, currency) of `line_items`.

    Raises:
        Invalid: They are missing or wrong.
    """
    if not isinstance(items, dict) or not items:
        raise Invalid("Missing required param: line_items.", param="line_items")
    total, currency = 0, ""
    for item in items.values():
        price = item.get("price_data") if isinstance(item, dict) else None
        if not isinstance(price, dict):
            raise Invalid("The simulation takes line_items with price_data.", param="line_items")
        amount = read_whole(price, "unit_amount", least=0, most=MAX_CENTS)
        total += amount * read_whole(item, "quantity", least=1, most=MAX_QUANTITY)
        currency = read_word(price, "currency").lower()
    return total, currency
