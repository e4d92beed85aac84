"""Stripe's API: Checkout, payments by card, refunds, disputes, events. No real card number is taken.

contracts/stripe.toml says which facts are captured, which are assumed.
"""

import hashlib
from collections.abc import Mapping
from functools import partial
from typing import Any

from appliance.base import jsons
from appliance.base.clock import Clock
from appliance.base.errors import ApplianceError, Invalid, NotFound
from appliance.base.money import shorten
from appliance.simulate.answers import (
    Handler,
    TwinAnswer,
    TwinRefusal,
    TwinRequest,
    TwinRoute,
    is_simulated_key,
)
from appliance.simulate.faults import Faults
from appliance.simulate.stripe_cards import DECLINES, find_card
from appliance.simulate.stripe_checkout import StripeCheckout
from appliance.simulate.stripe_forms import LEAST_CENTS, MAX_CENTS, nest, read_metadata, read_whole, read_word
from appliance.simulate.stripe_ledger import CardDeclined, StripeLedger, StripeObject
from appliance.simulate.stripe_webhooks import WebhookEndpoint, Webhooks, check_url
from appliance.simulate.twin_clock import TwinClock

KEY = "sk_test_simulated"
WEBHOOK_SECRET = "whsec_simulated"  # noqa: S105 - it opens nothing
MAX_KEPT = 1000  # answers, for Idempotency-Key
KEPT_S = 86_400
MAX_ENDPOINTS = 16
KINDS = {
    "checkout/sessions": "checkout.session",
    "payment_methods": "payment_method",
    "payment_intents": "payment_intent",
    "charges": "charge",
    "refunds": "refund",
    "disputes": "dispute",
}
OUTCOMES = ("paid", "declined", "expired", "disputed", "won", "lost")


class StripeService:
    """The stand-in for Stripe.

    Args:
        clock: The twin's.
        faults: What is to go wrong.
        signing: The time of signatures of events.
        webhook_url: Where all events go from the start; "" = to those that are registered alone.
    """

    name = "stripe"
    calls: tuple[str, ...] = ()

    def __init__(self, clock: TwinClock, faults: Faults, *, signing: Clock, webhook_url: str = "") -> None:
        self._clock = clock
        self._webhooks = Webhooks(faults, signing=signing)
        self._ledger = StripeLedger(clock, lambda event: self._webhooks.add(event, clock.now_ms()))
        self._kept: dict[str, tuple[str, float, TwinAnswer]] = {}
        self._checkout = StripeCheckout(self._ledger, clock)
        if webhook_url:
            self._add_endpoint(webhook_url, WEBHOOK_SECRET, ("*",))

    def routes(self) -> list[TwinRoute]:
        """Return its addresses."""
        rows: list[tuple[str, str, str, Handler]] = [
            ("checkout", "POST", "/v1/checkout/sessions", self.create_session),
            ("checkout", "POST", "/v1/checkout/sessions/{id}/expire", self.expire_session),
            ("methods", "POST", "/v1/payment_methods", self.create_method),
            ("intents", "POST", "/v1/payment_intents", self.create_intent),
            ("intents", "POST", "/v1/payment_intents/{id}/confirm", self.confirm_intent),
            ("intents", "POST", "/v1/payment_intents/{id}/cancel", self.cancel_intent),
            ("refunds", "POST", "/v1/refunds", self.create_refund),
            ("endpoints", "POST", "/v1/webhook_endpoints", self.create_endpoint),
        ]
        routes = [TwinRoute(name, method, path, partial(self._once, act)) for name, method, path, act in rows]
        for path, kind in KINDS.items():
            routes.append(TwinRoute("show", "GET", f"/v1/{path}", partial(self._list, kind)))
            routes.append(TwinRoute("show", "GET", f"/v1/{path}/{{id}}", partial(self._show, kind)))
        return [
            *routes,
            TwinRoute("show", "GET", "/v1/events", self.list_events),
            TwinRoute("show", "GET", "/v1/events/{id}", self.show_event),
            TwinRoute("endpoints", "DELETE", "/v1/webhook_endpoints/{id}", self.delete_endpoint),
            TwinRoute("page", "GET", "/pay/{id}", self.show_page, is_open=True),
            TwinRoute("page", "POST", "/pay/{id}", self.submit_page, is_open=True),
        ]

    def check_key(self, headers: Mapping[str, str]) -> None:
        """Refuse a key that does not say that it is simulated."""
        if not is_simulated_key(headers.get("Authorization", ""), prefix="Bearer "):
            text = f"Invalid API Key provided (simulated: it has the word `simulated`, as {KEY!r})"
            raise TwinRefusal(401, self.error_body(401, "", text))

    def error_body(self, status: int, code: str, text: str) -> Any:
        """Return an error in Stripe's form."""
        kind = "api_error" if status >= 500 else "invalid_request_error"
        return {"error": {"type": kind, "message": text, **({"code": code} if code else {})}}

    def url(self, origin: str) -> str:
        """Return the address to configure."""
        return origin

    def environ(self, origin: str) -> dict[str, str]:
        """Return the variables with which the appliance uses it."""
        return {"STRIPE_API_URL": origin, "STRIPE_SECRET_KEY": KEY, "STRIPE_WEBHOOK_SECRET": WEBHOOK_SECRET}

    def settle(self) -> None:
        """End what is due."""
        self._ledger.expire_sessions()

    async def deliver(self) -> None:
        """Send the events that are due."""
        await self._webhooks.deliver(self._clock.now_ms())

    def truth(self) -> dict[str, Any]:
        """Return what really was paid, and which events were delivered."""
        return {**self._ledger.truth(), "webhooks": self._webhooks.truth()}

    async def close(self) -> None:
        """Close its connections."""
        await self._webhooks.close()

    # ---- each POST once

    async def _once(self, act: Handler, request: TwinRequest) -> TwinAnswer:
        """Answer a POST with an Idempotency-Key as the first time, if it was answered before."""
        key = request.raw.headers.get("Idempotency-Key", "")[:255]
        digest = hashlib.sha256(f"{request.raw.path}\n".encode() + request.data).hexdigest()
        if key and (kept := self._kept.get(key)) and self._clock.monotonic_s() - kept[1] < KEPT_S:
            if kept[0] != digest:
                text = (
                    f"Keys for idempotent requests can only be used with the same parameters: {shorten(key)}"
                )
                raise TwinRefusal(400, {"error": {"type": "idempotency_error", "message": text}})
            first = kept[2]
            return TwinAnswer(first.body, first.status, {**first.headers, "Idempotent-Replayed": "true"})
        answer = await self._answer(act, request)
        if key and answer.status in (200, 402):  # a request that is wrong can be corrected
            while len(self._kept) >= MAX_KEPT:
                del self._kept[next(iter(self._kept))]
            self._kept[key] = (digest, self._clock.monotonic_s(), _frozen(answer))
        return answer

    async def _answer(self, act: Handler, request: TwinRequest) -> TwinAnswer:
        try:
            request.body = nest(
                {name: value for name, value in request.body.items() if isinstance(value, str)}
            )
            return await act(request)
        except CardDeclined as exc:
            error = {"type": "card_error", "code": exc.code, "decline_code": exc.decline, "message": str(exc)}
            return TwinAnswer({"error": {**error, "payment_intent": exc.intent}}, 402)
        except ApplianceError as exc:
            status = 404 if isinstance(exc, NotFound) else 400
            body = self.error_body(status, exc.code or "", str(exc))
            return TwinAnswer({"error": {**body["error"], "param": exc.param}}, status)

    # ---- Checkout

    async def create_session(self, request: TwinRequest) -> TwinAnswer:
        """Make a Checkout session, and its page."""
        return TwinAnswer(self._checkout.create(request.body, origin=str(request.raw.url.origin())))

    async def expire_session(self, request: TwinRequest) -> TwinAnswer:
        """End a Checkout session that is open."""
        return TwinAnswer(self._checkout.expire(request.params["id"]))

    async def show_page(self, request: TwinRequest) -> TwinAnswer:
        """Show the page on which a customer would pay."""
        return TwinAnswer(stream=partial(self._checkout.show_page, request.params["id"]))

    async def submit_page(self, request: TwinRequest) -> TwinAnswer:
        """Pay on that page, or be declined."""
        number = request.params["id"]
        try:
            session = self._checkout.pay(number, is_good=request.body.get("outcome") != "declined")
        except CardDeclined:
            return TwinAnswer(stream=partial(self._checkout.show_page, number))
        except ApplianceError as exc:
            raise TwinRefusal(400, self.error_body(400, "", str(exc))) from None
        place = session["success_url"].replace("{CHECKOUT_SESSION_ID}", session["id"])
        return TwinAnswer({}, 303, {"Location": place})

    # ---- payments by card

    async def create_method(self, request: TwinRequest) -> TwinAnswer:
        """Make a payment method of a token; card numbers are refused."""
        if read_word(request.body, "type") != "card":
            raise Invalid("The simulation has the type `card` alone.", param="type")
        given = request.body.get("card")
        if not isinstance(given, dict) or "number" in given or "token" not in given:
            raise Invalid("Card numbers are not taken; send card[token]=tok_visa.", param="card")
        card = find_card(read_word(given, "token"))
        if card is None:
            raise NotFound(f"No such token: {shorten(given['token'])}", param="card", code="resource_missing")
        return TwinAnswer(self._ledger.add_card(card))

    async def create_intent(self, request: TwinRequest) -> TwinAnswer:
        """Make a payment; with `confirm` it is tried at once."""
        form = request.body
        amount = read_whole(form, "amount", least=LEAST_CENTS, most=MAX_CENTS)
        currency, metadata = read_word(form, "currency").lower(), read_metadata(form)
        method = self._method(form["payment_method"]) if "payment_method" in form else None
        intent = self._ledger.make_intent(amount, currency, metadata)
        if method is not None:
            intent.update(payment_method=method["id"], status="requires_confirmation")
        if form.get("confirm") == "true":
            return TwinAnswer(self._confirm(intent))
        return TwinAnswer(intent)

    def _method(self, name: Any) -> StripeObject:
        """Return a payment method: one that was made, or one of Stripe's own for tests."""
        card = find_card(name) if isinstance(name, str) and name.startswith("pm_card_") else None
        return self._ledger.add_card(card) if card is not None else self._ledger.find(name, "payment_method")

    def _confirm(self, intent: StripeObject) -> StripeObject:
        if intent["status"] not in ("requires_confirmation", "requires_payment_method"):
            text = f"You cannot confirm this PaymentIntent because it has a status of {intent['status']}."
            raise Invalid(text, code="payment_intent_unexpected_state")
        if intent["payment_method"] is None:
            raise Invalid(
                "You cannot confirm this PaymentIntent: it has no payment method.", param="payment_method"
            )
        return self._ledger.confirm(intent)

    async def confirm_intent(self, request: TwinRequest) -> TwinAnswer:
        """Try a payment."""
        intent = self._ledger.find(request.params["id"], "payment_intent")
        if "payment_method" in request.body:
            intent["payment_method"] = self._method(request.body["payment_method"])["id"]
        return TwinAnswer(self._confirm(intent))

    async def cancel_intent(self, request: TwinRequest) -> TwinAnswer:
        """Give a payment up."""
        return TwinAnswer(self._ledger.cancel(self._ledger.find(request.params["id"], "payment_intent")))

    async def create_refund(self, request: TwinRequest) -> TwinAnswer:
        """Give money back, all that is left unless an amount is given."""
        form = request.body
        charge = self._charge(form.get("payment_intent"), form.get("charge"))
        left = charge["amount"] - charge["amount_refunded"]
        amount = read_whole(form, "amount", least=1, most=MAX_CENTS) if "amount" in form else left
        return TwinAnswer(self._ledger.refund(charge, amount, read_metadata(form)))

    def _charge(self, intent: Any, charge: Any) -> StripeObject:
        if intent is None:
            return self._ledger.find(charge, "charge")
        found = self._ledger.find(intent, "payment_intent")
        if found["latest_charge"] is None:
            raise Invalid("This PaymentIntent does not have a successful charge.", param="payment_intent")
        return self._ledger.find(found["latest_charge"], "charge")

    # ---- looking

    async def _show(self, kind: str, request: TwinRequest) -> TwinAnswer:
        async def show(request: TwinRequest) -> TwinAnswer:
            return TwinAnswer(self._ledger.find(request.params["id"], kind))

        return await self._answer(show, request)

    async def _list(self, kind: str, request: TwinRequest) -> TwinAnswer:
        return self._page_of(self._ledger.all(kind), request)

    async def list_events(self, request: TwinRequest) -> TwinAnswer:
        """Answer the last events, the youngest first; `type` chooses."""
        wanted = request.query.get("type")
        return self._page_of(
            [each for each in self._ledger.events if wanted in (None, each["type"])], request
        )

    async def show_event(self, request: TwinRequest) -> TwinAnswer:
        """Answer one event."""
        for event in self._ledger.events:
            if event["id"] == request.params["id"]:
                return TwinAnswer(event)
        raise TwinRefusal(404, self.error_body(404, "resource_missing", "No such event"))

    def _page_of(self, rows: list[StripeObject], request: TwinRequest) -> TwinAnswer:
        limit = request.query.get("limit", "10")
        if not (limit.isdecimal() and len(limit) < 4 and 1 <= int(limit) <= 100):
            raise TwinRefusal(400, self.error_body(400, "", "limit must be from 1 to 100"))
        for name in ("payment_intent", "charge"):
            if name in request.query:
                rows = [row for row in rows if row.get(name) == request.query[name]]
        if after := request.query.get("starting_after"):
            places = [place for place, row in enumerate(rows) if row["id"] == after]
            rows = rows[places[0] + 1 :] if places else []
        page, path = rows[: int(limit)], request.raw.path
        return TwinAnswer({"object": "list", "data": page, "has_more": len(rows) > len(page), "url": path})

    # ---- events, and what happens outside

    async def create_endpoint(self, request: TwinRequest) -> TwinAnswer:
        """Register where events go; the secret is shown this once."""
        types = request.body.get("enabled_events") or {"0": "*"}
        if not isinstance(types, dict):
            raise Invalid("enabled_events must be a list.", param="enabled_events")
        number = len(self._webhooks.endpoints)
        endpoint = self._add_endpoint(
            read_word(request.body, "url"), f"{WEBHOOK_SECRET}_{number}", tuple(map(str, types.values()))
        )
        fields = {"url": endpoint.url, "enabled_events": list(endpoint.types), "secret": endpoint.secret}
        return TwinAnswer({"id": endpoint.id, "object": "webhook_endpoint", "status": "enabled", **fields})

    def _add_endpoint(self, url: str, secret: str, types: tuple[str, ...]) -> WebhookEndpoint:
        if len(self._webhooks.endpoints) >= MAX_ENDPOINTS:
            raise Invalid(f"{MAX_ENDPOINTS} webhook endpoints are registered; delete one.")
        digest = hashlib.sha256(f"{url}{secret}".encode()).hexdigest()[:24]
        endpoint = WebhookEndpoint(f"we_{digest}", check_url(url), secret, types)
        self._webhooks.endpoints[endpoint.id] = endpoint
        return endpoint

    async def delete_endpoint(self, request: TwinRequest) -> TwinAnswer:
        """Send no more events there."""
        number = request.params["id"]
        if self._webhooks.endpoints.pop(number, None) is None:
            raise TwinRefusal(404, self.error_body(404, "resource_missing", "No such webhook endpoint"))
        return TwinAnswer({"id": number, "object": "webhook_endpoint", "deleted": True})

    def pay(self, body: dict[str, Any]) -> dict[str, Any]:
        """Do what a customer does: `{"id": "cs_… | pi_… | ch_… | dp_…", "outcome": "paid"}`.

        Raises:
            Invalid: It cannot be done.
            NotFound: There is no such object.
        """
        number, outcome = body.get("id"), body.get("outcome", "paid")
        if outcome not in OUTCOMES:
            raise Invalid(
                f"`outcome` is {shorten(outcome)}; allowed are {', '.join(OUTCOMES)}.", param="outcome"
            )
        kind = str(number).partition("_")[0]
        try:
            match kind, outcome:
                case "cs", "paid" | "declined":
                    self._checkout.pay(number, is_good=outcome == "paid")
                case "cs", "expired":
                    self._checkout.expire(number)
                case "pi", "paid" | "declined":
                    self._decide(self._ledger.find(number, "payment_intent"), outcome)
                case "pi" | "ch", "disputed":
                    charge = self._charge(number, None) if kind == "pi" else self._charge(None, number)
                    return self._ledger.dispute(charge)
                case "dp", "won" | "lost":
                    return self._ledger.close_dispute(self._ledger.find(number, "dispute"), outcome)
                case _:
                    text = f"`id` {shorten(number)} and `outcome` {outcome} do not go together"
                    raise Invalid(
                        f"{text}: cs_ paid declined expired; pi_ paid declined disputed; dp_ won lost."
                    )
        except CardDeclined as exc:
            return exc.intent
        return self._ledger.find(number, "checkout.session" if kind == "cs" else "payment_intent")

    def _decide(self, intent: StripeObject, outcome: str) -> None:
        """Let the card's owner confirm a payment, or not."""
        if intent["status"] != "requires_action":
            raise Invalid(
                f"The payment {intent['id']} has the status {intent['status']}, not requires_action."
            )
        if outcome == "paid":
            self._ledger.succeed(intent)
        else:
            self._ledger.fail(intent, next(iter(DECLINES)))


def _frozen(answer: TwinAnswer) -> TwinAnswer:
    """Return a copy of an answer that later changes do not reach."""
    return TwinAnswer(jsons.loads(jsons.dumps(answer.body)), answer.status, dict(answer.headers))
