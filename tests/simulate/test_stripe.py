"""The stand-in for Stripe: Checkout, cards, refunds, disputes, each POST once, signed events."""

import hashlib
import hmac
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest
from aiohttp import web

from appliance.base.errors import Invalid
from appliance.simulate.stripe_forms import nest
from appliance.simulate.stripe_webhooks import RETRIES_S, check_url
from appliance.simulate.twin import Twin
from tests.simulate.calls import Calls, Reply

SESSION = {
    "mode": "payment",
    "line_items[0][price_data][currency]": "usd",
    "line_items[0][price_data][unit_amount]": "1250",
    "line_items[0][price_data][product_data][name]": "Credits",
    "line_items[0][quantity]": "1",
    "metadata[payment_id]": "7",
    "payment_intent_data[metadata][payment_id]": "7",
    "success_url": "http://127.0.0.1:1/done?id={CHECKOUT_SESSION_ID}",
    "cancel_url": "http://127.0.0.1:1/cancel",
}
INTENT = {"amount": "1250", "currency": "usd", "confirm": "true", "metadata[payment_id]": "7"}


async def post(call: Calls, path: str, form: dict[str, str], key: str = "") -> Reply:
    return await call("stripe", "POST", path, data=form, headers={"Idempotency-Key": key} if key else {})


async def pay_by_card(call: Calls, card: str) -> Reply:
    return await post(call, "/v1/payment_intents", {**INTENT, "payment_method": f"pm_card_{card}"})


@dataclass
class Receiver:
    """Receives events; answers the statuses of `statuses`, then 200."""

    url: str = ""
    statuses: list[int] = field(default_factory=list)
    seen: list[tuple[str, bytes]] = field(default_factory=list)  # (Stripe-Signature, body)

    async def take(self, request: web.Request) -> web.Response:
        self.seen.append((request.headers["Stripe-Signature"], await request.read()))
        return web.Response(status=self.statuses.pop(0) if self.statuses else 200)

    def types(self) -> list[str]:
        return [json.loads(body)["type"] for _, body in self.seen]


@pytest.fixture
async def receiver(call: Calls, twin: Twin) -> AsyncIterator[Receiver]:
    receiver = Receiver()
    app = web.Application()
    app.router.add_post("/hook", receiver.take)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    receiver.url = f"http://127.0.0.1:{runner.addresses[0][1]}/hook"
    yield receiver
    await runner.cleanup()


async def register(call: Calls, receiver: Receiver, *types: str) -> str:
    form = {f"enabled_events[{number}]": name for number, name in enumerate(types or ("*",))}
    reply = await post(call, "/v1/webhook_endpoints", {"url": receiver.url, **form})
    return reply.json["secret"]


async def test_a_checkout_is_paid_on_its_page(call: Calls, twin: Twin) -> None:
    session = (await post(call, "/v1/checkout/sessions", SESSION)).json
    assert (session["status"], session["payment_status"], session["amount_total"]) == ("open", "unpaid", 1250)
    assert "12.50 usd" in (await call("", "GET", session["url"])).data.decode()
    options = {"data": {"outcome": "declined"}, "allow_redirects": False}
    assert (await call("", "POST", session["url"], **options)).status == 200
    reply = await call("", "POST", session["url"], data={"outcome": "paid"}, allow_redirects=False)
    assert reply.headers["Location"] == f"http://127.0.0.1:1/done?id={session['id']}"
    after = (await call("stripe", "GET", f"/v1/checkout/sessions/{session['id']}")).json
    assert (after["status"], after["payment_status"], after["metadata"]) == (
        "complete",
        "paid",
        {"payment_id": "7"},
    )
    intent = (await call("stripe", "GET", f"/v1/payment_intents/{after['payment_intent']}")).json
    assert (intent["status"], intent["metadata"]) == ("succeeded", {"payment_id": "7"})
    assert (await call("", "POST", session["url"], data={"outcome": "paid"})).status == 400
    assert twin.truth()["services"]["stripe"]["received_cents"] == 1250


async def test_a_checkout_expires_after_a_day(call: Calls, twin: Twin) -> None:
    number = (await post(call, "/v1/checkout/sessions", SESSION)).json["id"]
    await twin.advance(86_399)
    assert (await call("stripe", "GET", f"/v1/checkout/sessions/{number}")).json["status"] == "open"
    await twin.advance(1)
    assert (await call("stripe", "GET", f"/v1/checkout/sessions/{number}")).json["status"] == "expired"
    assert (await call.pay(service="stripe", id=number)).status == 400


async def test_a_good_card_pays_at_once(call: Calls, twin: Twin) -> None:
    method = await post(call, "/v1/payment_methods", {"type": "card", "card[token]": "tok_visa"})
    form = {**INTENT, "payment_method": method.json["id"], "automatic_payment_methods[enabled]": "true"}
    reply = await post(
        call, "/v1/payment_intents", {**form, "automatic_payment_methods[allow_redirects]": "never"}
    )
    assert (reply.json["status"], reply.json["amount_received"]) == ("succeeded", 1250)
    assert twin.truth()["services"]["stripe"]["received_cents"] == 1250


async def test_a_declined_card_answers_402_with_the_reason(call: Calls, twin: Twin) -> None:
    reply = await pay_by_card(call, "chargeDeclinedInsufficientFunds")
    error = reply.json["error"]
    assert (reply.status, error["type"], error["code"]) == (402, "card_error", "card_declined")
    assert error["decline_code"] == "insufficient_funds"
    assert error["payment_intent"]["status"] == "requires_payment_method"
    assert twin.truth()["services"]["stripe"]["received_cents"] == 0


@pytest.mark.parametrize(
    ("outcome", "status"), [("paid", "succeeded"), ("declined", "requires_payment_method")]
)
async def test_a_card_with_3ds_waits_for_its_owner(call: Calls, outcome: str, status: str) -> None:
    intent = (await pay_by_card(call, "threeDSecure2Required")).json
    assert (intent["status"], intent["next_action"]["type"]) == ("requires_action", "use_stripe_sdk")
    assert intent["client_secret"].startswith(intent["id"])
    assert (await call.pay(service="stripe", id=intent["id"], outcome=outcome)).json["status"] == status


async def test_refunds_never_exceed_the_payment(call: Calls, twin: Twin) -> None:
    intent = (await pay_by_card(call, "visa")).json
    form = {"payment_intent": intent["id"]}
    assert (await post(call, "/v1/refunds", {**form, "amount": "1000"})).json["status"] == "succeeded"
    assert (await post(call, "/v1/refunds", {**form, "amount": "251"})).status == 400
    assert (await post(call, "/v1/refunds", form)).json["amount"] == 250
    assert (await post(call, "/v1/refunds", form)).json["error"]["code"] == "charge_already_refunded"
    listed = (await call("stripe", "GET", "/v1/refunds", params=form)).json["data"]
    assert [each["amount"] for each in listed] == [250, 1000]
    assert twin.truth()["services"]["stripe"]["refunded_cents"] == 1250


async def test_a_dispute_is_won_or_lost(call: Calls, twin: Twin) -> None:
    intent = (await pay_by_card(call, "createDispute")).json
    (dispute,) = (await call("stripe", "GET", "/v1/disputes", params={"payment_intent": intent["id"]})).json[
        "data"
    ]
    assert (dispute["status"], dispute["amount"]) == ("needs_response", 1250)
    assert twin.truth()["services"]["stripe"]["disputed_cents"] == 1250
    assert (await call.pay(service="stripe", id=dispute["id"], outcome="won")).json["status"] == "won"
    assert (await call.pay(service="stripe", id=dispute["id"], outcome="lost")).status == 400
    assert twin.truth()["services"]["stripe"]["disputed_cents"] == 0


async def test_a_key_is_used_once(call: Calls, twin: Twin) -> None:
    form = {**INTENT, "payment_method": "pm_card_visa"}
    first = await post(call, "/v1/payment_intents", form, key="pay:7")
    again = await post(call, "/v1/payment_intents", form, key="pay:7")
    assert again.json == first.json
    assert again.headers["Idempotent-Replayed"] == "true"
    other = await post(call, "/v1/payment_intents", {**form, "amount": "900"}, key="pay:7")
    assert (other.status, other.json["error"]["type"]) == (400, "idempotency_error")
    assert twin.truth()["services"]["stripe"]["received_cents"] == 1250


async def test_a_payment_whose_answer_was_lost_is_found_by_its_key(call: Calls, twin: Twin) -> None:
    form = {**INTENT, "payment_method": "pm_card_visa"}
    await call.fault(service="stripe", kind="done_500")
    lost = await post(call, "/v1/payment_intents", form, key="pay:8")
    assert (lost.status, lost.json["error"]["type"]) == (500, "api_error")
    assert (await post(call, "/v1/payment_intents", form, key="pay:8")).json["status"] == "succeeded"
    assert twin.truth()["services"]["stripe"]["received_cents"] == 1250


async def test_events_are_signed_and_carry_our_metadata(call: Calls, twin: Twin, receiver: Receiver) -> None:
    secret = await register(call, receiver, "payment_intent.succeeded")
    await pay_by_card(call, "visa")
    await twin.deliver()
    ((signature, body),) = receiver.seen
    parts = dict(part.split("=", 1) for part in signature.split(","))
    signed = hmac.new(secret.encode(), f"{parts['t']}.".encode() + body, hashlib.sha256)
    assert hmac.compare_digest(parts["v1"], signed.hexdigest())
    event = json.loads(body)
    assert event["data"]["object"]["metadata"] == {"payment_id": "7"}
    assert (await call("stripe", "GET", f"/v1/events/{event['id']}")).json == event


async def test_a_failed_event_comes_again_later(call: Calls, twin: Twin, receiver: Receiver) -> None:
    await register(call, receiver, "payment_intent.succeeded")
    receiver.statuses = [500, 503]
    await pay_by_card(call, "visa")
    await twin.deliver()
    await twin.deliver()
    assert len(receiver.seen) == 1
    await twin.advance(RETRIES_S[0])
    await twin.deliver()
    assert len(receiver.seen) == 2
    await twin.advance(RETRIES_S[1])
    await twin.deliver()
    (done,) = twin.truth()["services"]["stripe"]["webhooks"]["delivered"]
    assert (done["outcome"], done["statuses"]) == ("delivered", [500, 503, 200])


async def test_an_event_is_given_up_after_three_days(call: Calls, twin: Twin, receiver: Receiver) -> None:
    await register(call, receiver, "payment_intent.succeeded")
    receiver.statuses = [500] * 20
    await pay_by_card(call, "visa")
    for seconds in (0, *RETRIES_S):
        await twin.advance(seconds)
        await twin.deliver()
    (done,) = twin.truth()["services"]["stripe"]["webhooks"]["delivered"]
    assert (done["outcome"], len(done["statuses"])) == ("given_up", len(RETRIES_S) + 1)
    assert sum(RETRIES_S) >= 2.8 * 86_400


@pytest.mark.parametrize(
    ("kind", "types"),
    [
        ("webhook_twice", ["charge.succeeded", "charge.succeeded", "payment_intent.succeeded"]),
        ("webhook_late", ["payment_intent.succeeded", "charge.succeeded"]),
        ("webhook_lost", ["payment_intent.succeeded"]),
    ],
)
async def test_events_double_swap_and_get_lost(
    call: Calls, twin: Twin, receiver: Receiver, kind, types
) -> None:
    await register(call, receiver)
    await call.fault(service="stripe", kind=kind)
    await pay_by_card(call, "visa")
    await twin.deliver()
    assert receiver.types() == types


async def test_a_wrong_signature_is_right_the_next_time(call: Calls, twin: Twin, receiver: Receiver) -> None:
    await register(call, receiver, "payment_intent.succeeded")
    receiver.statuses = [400]
    await call.fault(service="stripe", kind="webhook_bad_signature")
    await pay_by_card(call, "visa")
    await twin.deliver()
    await twin.advance(10)
    await twin.deliver()
    first, second = (signature.partition("v1=")[2] for signature, _ in receiver.seen)
    assert first != second


@pytest.mark.parametrize(
    ("path", "form", "part"),
    [
        ("/v1/payment_intents", {}, "amount"),
        ("/v1/payment_intents", {"amount": "12.5", "currency": "usd"}, "Invalid integer"),
        ("/v1/payment_intents", {"amount": "10", "currency": "usd"}, "50 to"),
        ("/v1/payment_intents", {**INTENT, "payment_method": "pm_other"}, "No such payment_method"),
        ("/v1/payment_intents", INTENT, "no payment method"),
        ("/v1/payment_intents", {"a[b": "1"}, "Invalid parameter name"),
        ("/v1/payment_methods", {"type": "card", "card[number]": "4" * 16}, "Card numbers are not taken"),
        ("/v1/payment_methods", {"type": "card", "card[token]": "tok_other"}, "No such token"),
        ("/v1/checkout/sessions", {}, "mode"),
        ("/v1/checkout/sessions", {"mode": "payment"}, "line_items"),
        ("/v1/checkout/sessions", {**SESSION, "line_items[0][quantity]": "0"}, "1 to 1000"),
        (
            "/v1/checkout/sessions",
            {**SESSION, "success_url": "http://x/\r\nSet-Cookie: a=b"},
            "Not a valid URL",
        ),
        ("/v1/checkout/sessions", {**SESSION, "cancel_url": "javascript:alert(1)"}, "Not a valid URL"),
        ("/v1/checkout/sessions/cs_x/expire", {}, "No such checkout.session"),
        ("/v1/refunds", {"payment_intent": "pi_x"}, "No such payment_intent"),
        ("/v1/webhook_endpoints", {"url": "https://example.com/hook"}, "addresses of this machine alone"),
    ],
)
async def test_a_wrong_form_is_refused_in_stripes_form(call: Calls, twin: Twin, path, form, part) -> None:
    reply = await post(call, path, form)
    assert reply.status in (400, 404)
    assert reply.json["error"]["type"] == "invalid_request_error"
    assert part in reply.json["error"]["message"]
    assert twin.truth()["services"]["stripe"]["received_cents"] == 0


@pytest.mark.parametrize(
    ("body", "part"),
    [
        ({"service": "stripe", "id": "pi_x"}, "No such payment_intent"),
        ({"service": "stripe", "id": "pi_x", "outcome": "stolen"}, "`outcome` is 'stolen'"),
        ({"service": "stripe", "id": "dp_x", "outcome": "paid"}, "do not go together"),
        ({"service": "vast"}, "allowed are stripe, chain"),
        ({"service": ["stripe"]}, "allowed are stripe, chain"),
    ],
)
async def test_a_wrong_pay_is_refused_clearly(call: Calls, body, part) -> None:
    reply = await call("stripe", "POST", "/_pay", body)
    assert reply.status == 400
    assert part in reply.json["error"]["message"]


async def test_events_never_leave_this_machine(call: Calls) -> None:
    assert check_url("http://[::1]:8080/hook")
    for url in ("http://10.0.0.1/", "http://localhost.example.com/", "ftp://127.0.0.1/", "http://", "x"):
        with pytest.raises(Invalid, match="this machine alone"):
            check_url(url)


def test_forms_become_objects() -> None:
    assert nest({"a": "1", "b[c]": "2", "b[d][0]": "3"}) == {"a": "1", "b": {"c": "2", "d": {"0": "3"}}}
    for fields in ({"a": "1", "a[b]": "2"}, {"a[b]": "2", "a": "1"}, {"a[b][c][d][e][f][g]": "1"}):
        with pytest.raises(Invalid):
            nest(fields)
