"""What callers send: one JSON object of known fields, bounded, and never a card's number.

Numbers of cards are refused before anything else is looked at, so that they reach no error text, log or row.
"""

import re
from collections.abc import Collection
from typing import Any, Final

from appliance.base.clock import Clock, parse_moment_s
from appliance.base.errors import Invalid, TooLarge
from appliance.base.money import MAX_MUSD, format_dollars, parse_musd
from appliance.front.pipeline.body import read_object
from appliance.front.pipeline.query import Query
from appliance.front.pipeline.request import Request

MAX_BYTES: Final = 65_536
MAX_DEPTH: Final = 20
MAX_KEY_CHARACTERS: Final = 128
MAX_MOMENT_CHARACTERS: Final = 40
MAX_ID_CHARACTERS: Final = 300
UNSEEN: Final = ("password", "old_password", "new_password", "refresh_token")  # never shown, logged or kept
PREFERENCE: Final = "x-preferred-payment"
_CARD_FIELD: Final = re.compile(r"(card|credit_?card)_?(num|number|no)|pan|cvv2?|cvc2?|security_?code")
_CARD: Final = re.compile(r"(?<!\d)\d(?:[ -]?\d){12,18}(?!\d)")


def read_fields(
    request: Request, known: Collection[str], *, needed: Collection[str] = (), is_optional: bool = False
) -> dict[str, Any]:
    """Read the body of a request.

    Args:
        request: Its body is one JSON object, up to 64 KiB.
        known: The fields that it may have; a misspelt one must not count as none.
        needed: Those that it must have.
        is_optional: No body counts as an object without fields.

    Raises:
        TooLarge: It is longer.
        Invalid: It is no such object, a field is unknown or missing, or it has a card's number.
    """
    if len(request.body) > MAX_BYTES:
        raise TooLarge(f"The body has {len(request.body)} bytes; up to {MAX_BYTES} are allowed here.")
    refuse_cards(request.headers.get(PREFERENCE, ""))
    body = {} if is_optional and not request.body.strip() else read_object(request.body)
    refuse_cards({name: value for name, value in body.items() if name not in UNSEEN})
    for name in body:
        if name not in known:
            raise Invalid(
                f"There is no field {name[:40]!r} here; there are {', '.join(known) or 'none'}.",
                param=name[:40],
                code="unknown_field",
            )
    missing = [name for name in needed if body.get(name) in (None, "")]
    if missing:
        raise Invalid("Missing required fields", code="missing_fields", details={"needed": missing})
    return body


def refuse_cards(value: object, *, depth: int = 0) -> None:
    """Refuse what looks like the number of a card, or is in a field for one. The value is not shown.

    Raises:
        Invalid: There is such a text or number, or the value is nested too deeply to be looked through.
    """
    if depth > MAX_DEPTH:
        raise Invalid(f"The body is nested more than {MAX_DEPTH} levels deep.", code="invalid_json")
    if isinstance(value, dict):
        for name, one in value.items():
            if _CARD_FIELD.fullmatch(str(name).lower()) and one not in (None, ""):
                raise card_refused()
            refuse_cards(one, depth=depth + 1)
    elif isinstance(value, list):
        for one in value:
            refuse_cards(one, depth=depth + 1)
    elif isinstance(value, str):
        if any(_is_card(match[0]) for match in _CARD.finditer(value)):
            raise card_refused()
    elif isinstance(value, int | float) and not isinstance(value, bool) and _is_card(f"{value:.0f}"):
        raise card_refused()


def card_refused() -> Invalid:
    """Return the refusal of a card's number."""
    return Invalid(
        "What was sent looks like the number of a card. Numbers of cards are never taken here, and this one "
        "was not kept.",
        code="card_number_refused",
    )


def _is_card(text: str) -> bool:
    """Whether digits are as many as a card has, and pass the check that its last digit is made by.

    Source:
        ISO/IEC 7812-1, annex B: the Luhn formula.
    """
    digits = [int(one) for one in text if one.isdigit()]
    if not 13 <= len(digits) <= 19 or not any(digits):
        return False
    doubled = [one * 2 - 9 if one > 4 else one * 2 for one in digits[-2::-2]]
    return (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0


def text_of(body: dict[str, Any], name: str, *, characters: int) -> str:
    """Return a text of a body; "" = it is not given.

    Raises:
        Invalid: It is no printable text of at most so many characters.
    """
    value = body.get(name)
    if value is None:
        return ""
    if isinstance(value, str) and len(value) <= characters and (not value or value.isprintable()):
        return value.strip()
    raise Invalid(
        f"`{name}` must be a text of up to {characters} printable characters.",
        param=name,
        code="invalid_type",
    )


def flag_of(body: dict[str, Any], name: str) -> bool:
    """Return a yes or no of a body; not given means no.

    Raises:
        Invalid: It is neither true nor false.
    """
    value = body.get(name)
    if value is None or isinstance(value, bool):
        return bool(value)
    raise Invalid(f"`{name}` must be true or false.", param=name, code="invalid_type")


def amount_of(body: dict[str, Any], name: str, *, least_musd: int = 0, most_musd: int = MAX_MUSD) -> int:
    """Return an amount of dollars of a body, in micro-dollars.

    Args:
        least_musd: The smallest that is allowed.
        most_musd: The largest that is allowed.

    Raises:
        Invalid: It is none, or out of range.
    """
    try:
        musd = parse_musd(body.get(name), least_musd=least_musd)
        if musd > most_musd:
            raise ValueError(f"it is more than {format_dollars(most_musd)} dollars")
        return musd
    except ValueError as wrong:
        raise Invalid(f"{name}: {wrong}.", param=name, code="invalid_amount") from None


def idempotency_key_of(request: Request) -> str:
    """Return the header Idempotency-Key; "" = there is none.

    Raises:
        Invalid: It is not 1 to 128 printable ASCII characters.
    """
    text = request.headers.get("idempotency-key")
    if text is None:
        return ""
    text = text.strip()
    if 0 < len(text) <= MAX_KEY_CHARACTERS and text.isascii() and text.isprintable():
        return text
    raise Invalid(
        f"Idempotency-Key must be 1 to {MAX_KEY_CHARACTERS} printable ASCII characters.",
        param="Idempotency-Key",
        code="invalid_header",
    )


def moment_of(query: Query, name: str, clock: Clock) -> int | None:
    """Return a moment of a query, in milliseconds since 1970; None = it is not given.

    Raises:
        Invalid: It is neither RFC 3339, nor seconds since 1970, nor how long ago (`10m`).
    """
    return _moment(query.text(name), name, clock)


def _moment(text: str, name: str, clock: Clock) -> int | None:
    if not text:
        return None
    try:
        if len(text) > MAX_MOMENT_CHARACTERS:
            raise ValueError
        at_ms = round(parse_moment_s(text, clock.now_s()) * 1000)
    except (ValueError, OverflowError):
        at_ms = -1
    if at_ms < 0:
        raise Invalid(
            f"`{name}` must be RFC 3339 (2026-12-01T00:00:00Z), seconds since 1970 or how long ago (10m), "
            f"not {text[:40]!r}.",
            param=name,
            code="invalid_value",
        )
    return at_ms


def cursor_of(query: Query, name: str, clock: Clock) -> tuple[int | None, str]:
    """Return where a page ends: `MOMENT` or `MOMENT,ID` as `next` of the page before has it.

    Returns:
        (milliseconds since 1970, None = from the newest on; the id, "" = none)

    Raises:
        Invalid: It is neither.
    """
    moment, _, one = query.text(name).partition(",")
    if len(one) > MAX_ID_CHARACTERS or (one and not one.isprintable()):
        raise Invalid(f"`{name}` must be `next` of the page before.", param=name, code="invalid_value")
    return _moment(moment, name, clock), one
