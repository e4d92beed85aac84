"""Stripe's cards for tests: what becomes of a payment with each of them. Pure."""

from dataclasses import dataclass

# decline code → what Stripe says
DECLINES = {
    "generic_decline": "Your card was declined.",
    "insufficient_funds": "Your card has insufficient funds.",
    "lost_card": "Your card was declined.",
    "expired_card": "Your card has expired.",
}


@dataclass(frozen=True, slots=True)
class TestCard:
    """A card for tests.

    Attributes:
        decline: The decline code; "" = it pays.
        has_3ds: Its owner must confirm each payment.
        is_disputed: Its owner disputes each payment.
    """

    __test__ = False  # no test of pytest

    last4: str
    decline: str = ""
    has_3ds: bool = False
    is_disputed: bool = False


CARDS: dict[str, TestCard] = {
    "visa": TestCard("4242"),
    "mastercard": TestCard("4444"),
    "chargeDeclined": TestCard("0002", "generic_decline"),
    "chargeDeclinedInsufficientFunds": TestCard("9995", "insufficient_funds"),
    "chargeDeclinedLostCard": TestCard("9987", "lost_card"),
    "chargeDeclinedExpiredCard": TestCard("0069", "expired_card"),
    "threeDSecure2Required": TestCard("3220", has_3ds=True),
    "threeDSecureRequired": TestCard("3063", has_3ds=True),
    "createDispute": TestCard("0259", is_disputed=True),
}


def find_card(name: str) -> TestCard | None:
    """Return the card of `tok_visa`, `pm_card_visa` or `visa`; None = no card for tests."""
    for prefix in ("tok_visa_", "pm_card_visa_", "tok_", "pm_card_"):
        if name.startswith(prefix) and (card := CARDS.get(name.removeprefix(prefix))) is not None:
            return card
    return CARDS.get(name)
