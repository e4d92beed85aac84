"""The file of PRICES_FILE: reading it, and saying what is wrong with it by line, model and field.

`{"prices": [{"model": "llama-70b", "in": "0.60", "cached_in": "0.15", "out": "0.80"}]}`; dollars, as decimal
text or numbers, per 1,000,000 tokens. `model` may be `*`, the price of every other model.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from difflib import get_close_matches
from json import JSONDecodeError, JSONDecoder
from typing import Any

from appliance.accounts.prices import Price
from appliance.base.money import parse_musd, shorten

MAX_ROWS = 10_000
MAX_BYTES = 4 * 1024 * 1024
MAX_MODEL_CHARS = 200
MAX_MARKUP_PERCENT = 10_000
_AMOUNTS = {
    "in": "in_per_mtok",
    "cached_in": "cached_in_per_mtok",
    "out": "out_per_mtok",
    "embedding": "embedding_per_mtok",
    "per_request": "per_request_musd",
}
_FIELDS = ("model", "valid_from", *_AMOUNTS, "gpu_hour_markup_percent")
_BLANKS = re.compile(r"\s*")
_DECODER = JSONDecoder(parse_float=Decimal)
_MONEY = {
    "anyOf": [
        {"type": "string", "pattern": r"^\+?\d{1,9}(\.\d{1,6}0*)?$"},
        {"type": "number", "minimum": 0},
    ]
}


def price_file_schema() -> dict[str, Any]:
    """Return the JSON schema of the file, for editors."""
    row = {
        "type": "object",
        "additionalProperties": False,
        "required": ["model"],
        "properties": {
            "model": {"type": "string", "minLength": 1, "maxLength": MAX_MODEL_CHARS, "description": "Public name; * = every other model"},  # noqa: E501
            "valid_from": {"type": "string", "format": "date-time", "description": "When the price begins; default: when it is first read"},  # noqa: E501
            "in": _MONEY | {"description": "Dollars per 1M prompt tokens; default 0"},
            "cached_in": _MONEY | {"description": "Dollars per 1M cached prompt tokens; default `in`"},
            "out": _MONEY | {"description": "Dollars per 1M tokens of the response; default 0"},
            "embedding": _MONEY | {"description": "Dollars per 1M tokens of embeddings; default `in`"},
            "per_request": _MONEY | {"description": "Dollars for each answered request; default 0"},
            "gpu_hour_markup_percent": {
                "type": "integer",
                "minimum": 0,
                "maximum": MAX_MARKUP_PERCENT,
                "description": "Added to a provider's price of a rented GPU; default 0",
            },
        },
    }  # fmt: skip
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Prices of models",
        "type": "object",
        "additionalProperties": False,
        "required": ["prices"],
        "properties": {
            "$schema": {"type": "string"},
            "prices": {"type": "array", "maxItems": MAX_ROWS, "items": row},
        },
    }


@dataclass(frozen=True, slots=True)
class PriceRow:
    """One row of the file.

    Attributes:
        price: Its figures; the version is still 0, and `valid_from_ms` is 0 where the row names no time.
        line: Where it begins, from 1.
    """

    price: Price
    line: int


@dataclass(slots=True)
class PriceFile:
    """What was read.

    Attributes:
        rows: Every row that is right.
        problems: What is wrong, one sentence each: `line 4, model 'x', field "in": …`.
    """

    rows: list[PriceRow]
    problems: list[str]


class _NotThere(Exception):
    """The text has not the form of the file; the text says where and what is missing."""


def read_price_file(data: bytes) -> PriceFile:
    """Read the file, with every problem in it."""
    file = PriceFile([], [])
    if len(data) > MAX_BYTES:
        file.problems.append(f"The file has {len(data)} bytes; allowed are {MAX_BYTES}.")
        return file
    try:
        text = data.decode("utf-8-sig")
        for number, (start, end, row) in enumerate(_rows(text)):
            if number == MAX_ROWS:
                raise _NotThere(f"line {_line(text, start)}: more than {MAX_ROWS} rows; remove some")
            _RowReader(text, start, end, file).read(row)
    except UnicodeDecodeError:
        file.problems.append("The file is not UTF-8; save it as UTF-8.")
    except _NotThere as wrong:
        file.problems.append(f"{wrong}.")
    except JSONDecodeError as wrong:
        file.problems.append(f"line {wrong.lineno}, column {wrong.colno}: not JSON: {wrong.msg}.")
    except RecursionError:
        file.problems.append("The file is nested too deeply; a row is an object of plain values.")
    _find_repeated(file)
    return file


def _find_repeated(file: PriceFile) -> None:
    seen: dict[tuple[str, int], int] = {}
    for row in file.rows:
        key = (row.price.model, row.price.valid_from_ms)
        if key in seen:
            file.problems.append(
                f"line {row.line}, model {row.price.model!r}: the same model and valid_from as in line "
                f"{seen[key]}; remove one, or give them different times."
            )
        seen.setdefault(key, row.line)


def _line(text: str, offset: int) -> int:
    return text.count("\n", 0, offset) + 1


def _rows(text: str) -> Iterator[tuple[int, int, Any]]:
    """Give each element of `prices` with its place; the standard parser gives no places of its own."""
    for key, place in _members(text, _skip(text, 0)):
        if key == "$schema":
            continue
        if key != "prices":
            raise _NotThere(f'line {_line(text, place)}: unknown key {shorten(key)}; allowed is "prices"')
        yield from _elements(text, place)
        return
    raise _NotThere('the key "prices" is missing: {"prices": [{"model": …}]}')


def _members(text: str, place: int) -> Iterator[tuple[str, int]]:
    """Give the key, and the place of the value, of each member of the object at `place`."""
    _expect(text, place, "{", 'an object such as {"prices": […]}')
    place = _skip(text, place + 1)
    while text[place : place + 1] != "}":
        key, place = _DECODER.raw_decode(text, place)
        if not isinstance(key, str):
            raise _NotThere(f"line {_line(text, place)}: a key must be text")
        place = _skip(text, place)
        _expect(text, place, ":", "a colon after the key")
        place = _skip(text, place + 1)
        yield key, place
        _, place = _DECODER.raw_decode(text, place)
        place = _skip(text, place)
        if text[place : place + 1] != "}":
            _expect(text, place, ",", "a comma, or the end of the object")
            place = _skip(text, place + 1)


def _elements(text: str, place: int) -> Iterator[tuple[int, int, Any]]:
    _expect(text, place, "[", "a list of prices")
    place = _skip(text, place + 1)
    while text[place : place + 1] != "]":
        value, end = _DECODER.raw_decode(text, place)
        yield place, end, value
        place = _skip(text, end)
        if text[place : place + 1] != "]":
            _expect(text, place, ",", "a comma, or the end of the list")
            place = _skip(text, place + 1)
    _DECODER.decode(text)  # what stands behind the list must be JSON, too


def _skip(text: str, place: int) -> int:
    match = _BLANKS.match(text, place)
    return match.end() if match else place


def _expect(text: str, place: int, sign: str, what: str) -> None:
    if text[place : place + 1] != sign:
        found = repr(text[place : place + 1]) if place < len(text) else "the end of the file"
        raise _NotThere(f"line {_line(text, place)}: expected {what}, found {found}")


class _RowReader:
    """Reads one row; what is wrong is added to the file's problems."""

    def __init__(self, text: str, start: int, end: int, file: PriceFile) -> None:
        self._text, self._start, self._end = text, start, end
        self._file = file
        self._model = ""
        self._is_right = True

    def read(self, row: Any) -> None:
        if not isinstance(row, dict):
            self._wrong("", f"{shorten(row)} is no price; write an object with model, in and out")
            return
        model = row.get("model")
        self._model = model if isinstance(model, str) else ""
        if not isinstance(model, str) or not 1 <= len(model) <= MAX_MODEL_CHARS or not model.isprintable():
            self._wrong(
                "model", f"{shorten(model)} is no name; write the model's public name (1 to 200 signs), or *"
            )
        for name in row:
            if name not in _FIELDS:
                near = get_close_matches(name, _FIELDS, 1)
                hint = f"did you mean {near[0]!r}?" if near else f"allowed are {', '.join(_FIELDS)}"
                self._wrong(name, f"unknown; {hint}")
        amounts = {name: self._amount(name, row[name]) for name in _AMOUNTS if name in row}
        amounts.setdefault("cached_in", amounts.get("in", 0))
        amounts.setdefault("embedding", amounts.get("in", 0))
        valid_from_ms = self._time(row["valid_from"]) if "valid_from" in row else 0
        markup = self._markup(row.get("gpu_hour_markup_percent", 0))
        if self._is_right:
            figures = {_AMOUNTS[name]: musd for name, musd in amounts.items()}
            price = Price(self._model, valid_from_ms=valid_from_ms, gpu_hour_markup_percent=markup, **figures)
            self._file.rows.append(PriceRow(price, _line(self._text, self._start)))

    def _amount(self, name: str, value: Any) -> int:
        try:
            return parse_musd(value)
        except ValueError as wrong:
            self._wrong(name, str(wrong))
            return 0

    def _time(self, value: Any) -> int:
        try:
            moment = datetime.fromisoformat(value)
            moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
            at_ms = round(moment.timestamp() * 1000)
            if at_ms <= 0:
                raise ValueError
        except (TypeError, ValueError, OverflowError):
            self._wrong("valid_from", f"{shorten(value)} is no time; write RFC 3339: 2026-12-01T00:00:00Z")
            return 0
        return at_ms

    def _markup(self, value: Any) -> int:
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_MARKUP_PERCENT:
            return value
        self._wrong(
            "gpu_hour_markup_percent", f"{shorten(value)} is not allowed; write a whole number, 0 to 10000"
        )
        return 0

    def _wrong(self, name: str, text: str) -> None:
        self._is_right = False
        place = self._start
        if name and (match := re.compile(rf'"{re.escape(name)}"\s*:').search(self._text, place, self._end)):
            place = match.start()
        model = f", model {shorten(self._model)}" if self._model else ""
        of_field = f', field "{name}"' if name else ""
        self._file.problems.append(f"line {_line(self._text, place)}{model}{of_field}: {text}.")
