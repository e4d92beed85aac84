"""Stripe's own Python package against its stand-in; `EXAMPLE_CLIENTS` names a folder with `stripe/bin/python`."""

import asyncio
import json
import os
from pathlib import Path

import pytest

from appliance.simulate.stripe_webhooks import sign
from appliance.simulate.twin import Twin
from tests.simulate.calls import Calls

PROGRAM = """
import json, sys
import stripe

client = stripe.StripeClient("sk_test_simulated", base_addresses={"api": sys.argv[1]}, max_network_retries=2)
session = client.v1.checkout.sessions.create({
    "mode": "payment", "success_url": "http://127.0.0.1:1/done", "metadata": {"payment_id": "7"},
    "line_items": [{"quantity": 1, "price_data": {"currency": "usd", "unit_amount": 900,
                                                  "product_data": {"name": "Credits"}}}],
    "payment_intent_data": {"metadata": {"payment_id": "7"}},
}, {"idempotency_key": "pay:7"})
method = client.v1.payment_methods.create({"type": "card", "card": {"token": "tok_visa"}})
wanted = {"amount": 1250, "currency": "usd", "payment_method": method.id, "confirm": True,
          "automatic_payment_methods": {"enabled": True, "allow_redirects": "never"}, "metadata": {"payment_id": "8"}}
paid = client.v1.payment_intents.create(wanted, {"idempotency_key": "pay:8"})
again = client.v1.payment_intents.create(wanted, {"idempotency_key": "pay:8"})
try:
    client.v1.payment_intents.create({**wanted, "payment_method": "pm_card_chargeDeclined"})
    declined = None
except stripe.CardError as exc:
    declined = [exc.code, exc.http_status]
action = client.v1.payment_intents.create({**wanted, "payment_method": "pm_card_threeDSecure2Required"})
refund = client.v1.refunds.create({"payment_intent": paid.id, "amount": 250})
event = next(each for each in client.v1.events.list() if each.type == "payment_intent.succeeded")
payload, header = sys.stdin.read().split("\\0") if len(sys.argv) > 2 else ("", "")
if payload:
    stripe.Webhook.construct_event(payload, header, "whsec_x", tolerance=10**9)
print(json.dumps({"session": [session.status, session.url], "paid": paid.status, "same": paid.id == again.id,
                  "declined": declined, "action": action.status, "refund": refund.status,
                  "event": event.data.object.metadata.payment_id}))
"""


@pytest.fixture
def stripe() -> Path:
    path = Path(os.environ.get("EXAMPLE_CLIENTS") or "/nonexistent") / "stripe" / "bin" / "python"
    if not path.exists():
        pytest.skip("EXAMPLE_CLIENTS names no folder with stripe/bin/python")
    return path


async def test_the_official_client_pays_and_refunds(call: Calls, twin: Twin, stripe: Path) -> None:
    payload = b'{"id": "evt_1", "object": "event", "type": "charge.succeeded"}'
    process = await asyncio.create_subprocess_exec(
        stripe,
        "-c",
        PROGRAM,
        twin.origins["stripe"],
        "signed",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    given = payload + b"\0" + sign(payload, "whsec_x", 1_800_000_000).encode()
    out, _ = await asyncio.wait_for(process.communicate(given), 60)
    assert process.returncode == 0
    seen = json.loads(out)
    assert seen["session"][0] == "open"
    assert seen["session"][1].startswith(twin.origins["stripe"])
    assert (seen["paid"], seen["same"], seen["declined"]) == ("succeeded", True, ["card_declined", 402])
    assert (seen["action"], seen["refund"], seen["event"]) == ("requires_action", "succeeded", "8")
    truth = twin.truth()["services"]["stripe"]
    assert (truth["received_cents"], truth["refunded_cents"]) == (1250, 250)
