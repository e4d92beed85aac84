"""What looks like a card's number, and other values that are refused."""

from typing import Any

import pytest

from appliance.base.clock import FakeClock
from appliance.base.errors import Invalid, TooLarge
from appliance.front.accounts.bodies import (
    amount_of,
    idempotency_key_of,
    moment_of,
    read_fields,
    refuse_cards,
    text_of,
)
from appliance.front.pipeline.query import Query
from tests.front.requests import make_request

CARDS = ["4242424242424242", "5555 5555 5555 4444", "3782-822463-10005", "6011111111111117", "4222222222222"]


@pytest.mark.parametrize("card", CARDS)
@pytest.mark.parametrize(
    "place",
    [
        lambda card: card,
        lambda card: f"card:{card}:12/25:123",
        lambda card: {"note": {"more": [card]}},
        lambda card: {"a": int("".join(filter(str.isdigit, card)))},
        lambda card: f"pay with {card}, please",
    ],
)
def test_numbers_of_cards_are_refused_unseen(card: str, place: Any) -> None:
    with pytest.raises(Invalid) as refused:
        refuse_cards(place(card))
    assert refused.value.code == "card_number_refused"
    assert card[-4:] not in refused.value.message


@pytest.mark.parametrize(
    "name", ["card_num", "cardNumber", "card_number", "CVV", "cvc", "pan", "credit_card_number"]
)
def test_fields_for_cards_are_refused_whatever_is_in_them(name: str) -> None:
    with pytest.raises(Invalid):
        refuse_cards({"payment_preference": {name: "1"}})
    refuse_cards({"payment_preference": {name: ""}})


@pytest.mark.parametrize(
    "value",
    [
        "4242424242424241",  # the last digit is wrong
        "42424242424242424242424242",
        "0000000000000000",
        "018f3b0e-0000-7000-8000-000000000000",
        "2026-12-01T00:00:00Z",
        "tok_visa",
        5,
        1.5,
        True,
        None,
        {"name": "Ada", "amount": 100.25},
        10**30,
        1e300,
    ],
)
def test_other_values_are_no_cards(value: Any) -> None:
    refuse_cards(value)


def test_a_password_may_be_any_text() -> None:
    body = read_fields(make_request(body={"password": CARDS[0]}), ("password",))
    assert body == {"password": CARDS[0]}


def test_the_header_of_payments_is_looked_at() -> None:
    headers = {"x-preferred-payment": f"card:{CARDS[0]}:12/25:123"}
    with pytest.raises(Invalid) as refused:
        read_fields(make_request(headers=headers, body={}), ())
    assert refused.value.code == "card_number_refused"
    assert read_fields(make_request(headers={"x-preferred-payment": "card:tok_visa"}, body={}), ()) == {}


def test_bodies_are_bounded() -> None:
    with pytest.raises(TooLarge):
        read_fields(make_request(body=b"[" * 65_537), ())
    with pytest.raises(Invalid):
        read_fields(make_request(body=b"[" * 60_000), ())
    assert read_fields(make_request(body=b""), (), is_optional=True) == {}


@pytest.mark.parametrize("text", ["", " ", "x" * 129, "a\tb", "ü"])
def test_idempotency_keys_that_are_refused(text: str) -> None:
    with pytest.raises(Invalid, match="Idempotency-Key"):
        idempotency_key_of(make_request(headers={"idempotency-key": text}))


def test_idempotency_keys_are_taken_as_they_are() -> None:
    assert idempotency_key_of(make_request()) == ""
    assert idempotency_key_of(make_request(headers={"idempotency-key": " a-1 "})) == "a-1"


@pytest.mark.parametrize("amount", ["x", None, True, [1], {}, 1e30, "1e5", 0.0000001, "-1", -5, "NaN"])
def test_amounts_that_are_refused(amount: Any) -> None:
    with pytest.raises(Invalid) as refused:
        amount_of({"amount": amount}, "amount")
    assert (refused.value.param, refused.value.code) == ("amount", "invalid_amount")


@pytest.mark.parametrize(
    ("amount", "musd"), [(5, 5_000_000), ("0.000001", 1), (0.1, 100_000), ("12.50", 12_500_000)]
)
def test_amounts_are_exact(amount: Any, musd: int) -> None:
    assert amount_of({"amount": amount}, "amount") == musd


@pytest.mark.parametrize("value", [5, ["x"], "x" * 11, "a\nb"])
def test_texts_that_are_refused(value: Any) -> None:
    with pytest.raises(Invalid):
        text_of({"note": value}, "note", characters=10)


@pytest.mark.parametrize("text", ["x", "2026-13-01", "-5", "9" * 41, "10y", "99999999999999d"])
def test_moments_that_are_refused(text: str) -> None:
    with pytest.raises(Invalid, match="since"):
        moment_of(Query(f"since={text}", allowed=("since",)), "since", FakeClock())


def test_moments_are_milliseconds() -> None:
    clock = FakeClock(1_800_000_000)
    wanted = {"10m": 1_799_999_400_000, "2027-01-15T08:00:00Z": 1_800_000_000_000, "5": 5000}
    for text, at_ms in wanted.items():
        assert moment_of(Query(f"since={text}", allowed=("since",)), "since", clock) == at_ms
    assert moment_of(Query("", allowed=("since",)), "since", clock) is None
