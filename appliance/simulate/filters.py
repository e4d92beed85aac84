"""The filters, the order and the pages of vast.ai's listings. Pure."""

import base64
import binascii
from collections.abc import Callable
from typing import Any

from appliance.base import jsons
from appliance.base.errors import Invalid
from appliance.base.money import shorten

Row = dict[str, Any]
MAX_TERMS = 60
MAX_VALUES = 1000


def _compared(order: Callable[[Any, Any], bool]) -> Callable[[Any, Any], bool]:
    def test(have: Any, value: Any) -> bool:
        try:
            return have is not None and order(have, value)
        except TypeError:
            return False

    return test


OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "eq": lambda have, value: have == value,
    "neq": lambda have, value: have != value,
    "lt": _compared(lambda have, value: have < value),
    "lte": _compared(lambda have, value: have <= value),
    "gt": _compared(lambda have, value: have > value),
    "gte": _compared(lambda have, value: have >= value),
    "in": lambda have, value: have in value,
    "notin": lambda have, value: have not in value,
}


def select(rows: list[Row], wanted: Any, *, fields: frozenset[str]) -> list[Row]:
    """Return the rows that fit all filters `{field: {operator: value}}`.

    Args:
        rows: The rows.
        wanted: The filters.
        fields: Which there are.

    Raises:
        Invalid: A field, an operator or a value is wrong.
    """
    if not isinstance(wanted, dict):
        raise Invalid(f"Filters are an object, not {shorten(wanted)}.")
    terms = [_term(name, test, fields) for name, tests in wanted.items() for test in _tests(name, tests)]
    if len(terms) > MAX_TERMS:
        raise Invalid(f"There are {len(terms)} filters; allowed are {MAX_TERMS}.")
    return [row for row in rows if all(_fits(row.get(name), op, value) for name, op, value in terms)]


def _fits(have: Any, operator: str, value: Any) -> bool:
    """Whether a field fits; numbers may be given as text, as vast.ai's own command line does."""
    if isinstance(have, int | float) and not isinstance(have, bool):
        value = [_as_number(each) for each in value] if isinstance(value, list) else _as_number(value)
    return OPERATORS[operator](have, value)


def _as_number(value: Any) -> Any:
    try:
        return float(value) if isinstance(value, str) and len(value) <= 40 else value
    except ValueError:
        return value


def _tests(name: str, tests: Any) -> list[tuple[str, Any]]:
    if not isinstance(tests, dict) or not tests:
        raise Invalid(f"The filter of {shorten(name)} is {shorten(tests)}; allowed is {{operator: value}}.")
    return list(tests.items())


def _term(name: str, test: tuple[str, Any], fields: frozenset[str]) -> tuple[str, str, Any]:
    operator, value = test
    if name not in fields:
        raise Invalid(f"{shorten(name)} is no field that can be filtered.")
    if operator not in OPERATORS:
        raise Invalid(f"{shorten(operator)} is no operator; there are {', '.join(OPERATORS)}.")
    if operator in ("in", "notin") and (not isinstance(value, list) or len(value) > MAX_VALUES):
        raise Invalid(f"The operator {operator} takes a list of at most {MAX_VALUES} values.")
    return name, operator, value


def read_order(wanted: Any, *, fields: frozenset[str]) -> list[tuple[str, bool]]:
    """Read an order, `[[field, "asc"]]` or `[{"col": field, "dir": "asc"}]`; return (field, is descending).

    Raises:
        Invalid: It is no order of these fields.
    """
    if not isinstance(wanted, list) or len(wanted) > MAX_TERMS:
        raise Invalid(f"The order is {shorten(wanted)}; allowed is a list of [field, direction].")
    order = []
    for item in wanted:
        pair = (item.get("col"), item.get("dir", "asc")) if isinstance(item, dict) else item
        is_pair = isinstance(pair, list | tuple) and len(pair) == 2 and isinstance(pair[0], str)
        if not is_pair or pair[0] not in fields:
            raise Invalid(f"{shorten(item)} is no order of a field; allowed is [field, direction].")
        if pair[1] not in ("asc", "desc"):
            raise Invalid(f"{shorten(pair[1])} is no direction; there are asc and desc.")
        order.append((pair[0], pair[1] == "desc"))
    return order


def sort_rows(rows: list[Row], order: list[tuple[str, bool]]) -> list[Row]:
    """Return the rows in order; those without a value come last, equal ones by id."""
    ordered = sorted(rows, key=lambda row: str(row["id"]).rjust(20))
    for name, is_descending in reversed(order):
        present = [row for row in ordered if row.get(name) is not None]
        absent = [row for row in ordered if row.get(name) is None]
        ordered = sorted(present, key=lambda row: _comparable(row[name]), reverse=is_descending) + absent
    return ordered


def _comparable(value: Any) -> tuple[bool, Any]:
    return (True, value) if isinstance(value, str) else (False, float(value))


def cut_page(rows: list[Row], *, limit: int, token: str) -> tuple[list[Row], str | None]:
    """Return (the page after the row that `token` names, the token of the next page or None).

    Raises:
        Invalid: The token is none of ours, or its row is gone.
    """
    start = 0
    if token:
        after = _read_token(token)
        places = [place for place, row in enumerate(rows) if row["id"] == after]
        # A row that is gone: the rows before it are gone through, so what has a higher id comes next.
        start = places[0] + 1 if places else sum(row["id"] <= after for row in rows)
    page = rows[start : start + limit]
    if not page or start + limit >= len(rows):
        return page, None
    return page, base64.urlsafe_b64encode(jsons.dumps([page[-1]["id"]])).decode()


def _read_token(token: str) -> int:
    try:
        value = jsons.loads(base64.urlsafe_b64decode(token.encode()))
    except (ValueError, binascii.Error):
        value = None
    if not isinstance(value, list) or len(value) != 1 or not isinstance(value[0], int):
        raise Invalid(f"after_token is {shorten(token)}, which no page had as next_token.")
    return value[0]
