"""Files of prices as messages, and prices as a table."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, TextIO

from appliance.admin.tables import align
from appliance.base import jsons
from appliance.base.money import format_dollars
from appliance.cli import messages as pb
from appliance.cli.client import CallFailed


def check_prices(path: Path, out: TextIO) -> None:
    """Say that a file of prices is right.

    Raises:
        CallFailed: It is not; the text has every problem.
    """
    out.write(f"{path}: {len(read_prices(path))} prices, no problem\n")


def print_price_schema(out: TextIO) -> None:
    """Print the JSON schema of a file of prices."""
    from appliance.accounts.price_file import price_file_schema

    out.write(jsons.dumps_pretty(price_file_schema()) + "\n")


def read_prices(path: Path) -> "list[pb.ModelPrice]":
    """Return the prices of a file, as messages.

    Raises:
        CallFailed: It cannot be read, or something in it is wrong.
    """
    from appliance.accounts.price_file import read_price_file

    try:
        data = path.read_bytes()
    except OSError as error:
        raise CallFailed(f"{path}: {error.strerror}") from None
    file = read_price_file(data)
    if file.problems:
        raise CallFailed("\n".join(f"{path}: {problem}" for problem in file.problems))
    found: list[pb.ModelPrice] = []
    for row in file.rows:
        price = row.price
        message = pb.ModelPrice(
            model=price.model,
            in_musd=price.in_per_mtok,
            cached_in_musd=price.cached_in_per_mtok,
            out_musd=price.out_per_mtok,
            embedding_musd=price.embedding_per_mtok,
            per_request_musd=price.per_request_musd,
            gpu_hour_markup_percent=price.gpu_hour_markup_percent,
        )
        if price.valid_from_ms:
            message.valid_from.FromMilliseconds(price.valid_from_ms)
        found.append(message)
    return found


def price_table(prices: Iterable[Any]) -> str:
    """Return prices as a table."""
    rows = [["MODEL", "IN/1M", "CACHED/1M", "OUT/1M", "EMBED/1M", "REQUEST", "VERSION", "FROM", "SOURCE"]]
    rows += [
        [
            one.model,
            f"${format_dollars(one.in_musd)}",
            f"${format_dollars(one.cached_in_musd)}",
            f"${format_dollars(one.out_musd)}",
            f"${format_dollars(one.embedding_musd)}",
            f"${format_dollars(one.per_request_musd)}",
            str(one.version),
            one.valid_from.ToDatetime().strftime("%Y-%m-%d %H:%M:%S"),
            one.source,
        ]
        for one in prices
    ]
    return align(rows)
