"""The prices of PRICES_FILE, read with the settings: at the start, by `check`, and at each reload."""

from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING

from appliance.accounts.settings import AccountSettings
from appliance.base.errors import describe_os_error
from appliance.base.settings import Problem

if TYPE_CHECKING:  # loaded only with ACCOUNTS=1
    from appliance.accounts.prices import Price

ALLOWED = "a JSON file of prices, see docs/money.md"
MAX_SHOWN = 20


def read_prices(settings: AccountSettings) -> tuple[tuple["Price", ...], list[Problem]]:
    """Read PRICES_FILE; without accounts, and without a file, there are no prices.

    Returns:
        (the prices; what is wrong with the file, by line)
    """
    path = settings.prices_file
    if path is None or not settings.accounts:
        return (), []
    from appliance.accounts.price_file import read_price_file

    try:
        file = read_price_file(path.read_bytes())
    except OSError as exc:
        remedy = f"It cannot be read: {describe_os_error(exc)}."
        return (), [Problem("PRICES_FILE", str(path), ALLOWED, remedy)]
    shown = file.problems[:MAX_SHOWN]
    if len(file.problems) > MAX_SHOWN:
        shown.append(f"{len(file.problems) - MAX_SHOWN} more problems.")
    prices = tuple(row.price for row in file.rows)
    return prices, [Problem("PRICES_FILE", str(path), ALLOWED, one) for one in shown]


def price_differences(before: Sequence["Price"], after: Sequence["Price"]) -> list[str]:
    """Return how the prices of two files differ, one line for each model."""
    old, new = _by_model(before), _by_model(after)
    lines = []
    for model in sorted({*old, *new}):
        if model not in new:
            lines.append(f"{model} has no price any more")
        elif new[model] != old.get(model):
            lines.append(f"{model}: {'; '.join(price.describe() for price in new[model])}")
    return lines


def _by_model(prices: Sequence["Price"]) -> dict[str, list["Price"]]:
    found: dict[str, list[Price]] = defaultdict(list)
    for price in prices:
        found[price.model].append(price)
    return dict(found)
