"""Money as whole micro-dollars: reading, writing, and what tokens cost. No float takes part in a sum.

A price is whole micro-dollars per 1,000,000 tokens, so that six decimals of dollars are exact and one token
costs a millionth of that number. Names of amounts end in `_musd`, of prices in `_per_mtok`.
"""

import re
from decimal import Decimal
from typing import Any

MUSD_PER_DOLLAR = 1_000_000
TOKENS_PER_PRICE = 1_000_000
MAX_MUSD = 10**15  # a billion dollars: sums of many stay within 64 bits
_DECIMAL = re.compile(r"([+-]?)(\d{1,12})(?:\.(\d{1,12}))?", re.ASCII)


def parse_musd(value: Any, *, decimals: int = 6, least_musd: int = 0) -> int:
    """Read an amount of dollars exactly.

    Args:
        value: Decimal text such as `0.60`, an int, or a Decimal (of JSON that was read with it). A float is
            read by its shortest text, as JSON writes it.
        decimals: How many are allowed, 0 to 6.
        least_musd: The smallest amount allowed, micro-dollars.

    Returns:
        Micro-dollars.

    Raises:
        ValueError: It is no such amount; the text says what was wrong and what is allowed.
    """
    if isinstance(value, bool) or not isinstance(value, str | int | float | Decimal):
        raise ValueError(f"{shorten(value)} is no amount: write dollars as a decimal number, such as 0.60")
    match = _DECIMAL.fullmatch(_plain_text(value))
    if match is None:
        raise ValueError(f"{shorten(value)} is no amount: write dollars as a decimal number, such as 0.60")
    sign, whole, fraction = match[1], match[2], (match[3] or "").rstrip("0")
    if len(fraction) > decimals:
        raise ValueError(f"{shorten(value)} has {len(fraction)} decimals; allowed are at most {decimals}")
    musd = int(whole) * MUSD_PER_DOLLAR + int(fraction.ljust(6, "0"))
    musd = -musd if sign == "-" else musd
    if not least_musd <= musd <= MAX_MUSD:
        least, most = format_dollars(least_musd), format_dollars(MAX_MUSD)
        raise ValueError(f"{shorten(value)} is out of range; allowed are {least} to {most} dollars")
    return musd


def _plain_text(value: str | int | float | Decimal) -> str:
    """Return the number without an exponent; "" where it would not be short."""
    if isinstance(value, str):
        return value.strip()
    number = Decimal(str(value)) if isinstance(value, float) else Decimal(value)
    return f"{number:f}" if number.is_finite() and -20 < number.adjusted() < 20 else ""


def shorten(value: Any) -> str:
    """Return a value as an error text shows it: quoted, at most 40 characters."""
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def to_dollars(musd: int) -> float:
    """Return dollars as JSON shows them: a number with at most 6 decimals (exact up to a billion)."""
    return round(musd / MUSD_PER_DOLLAR, 6)


def format_dollars(musd: int) -> str:
    """Return dollars as text for people, at least two decimals and no more than are needed: `0.60`."""
    whole, fraction = divmod(abs(musd), MUSD_PER_DOLLAR)
    digits = f"{fraction:06d}".rstrip("0").ljust(2, "0")
    return f"{'-' if musd < 0 else ''}{whole}.{digits}"


def round_up(priced: int) -> int:
    """Return whole micro-dollars for a sum of tokens × price (each price per 1,000,000 tokens).

    Rounded up once, on the sum: never per item, and never below what was used.
    """
    return -(-priced // TOKENS_PER_PRICE)
