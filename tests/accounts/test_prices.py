"""What is billed, by which version; what is wrong with a file of prices is told by line, model and field."""

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.accounts.price_file import price_file_schema, read_price_file
from appliance.accounts.prices import FREE, Price, PriceBook, TokenUsage
from appliance.base import jsons
from appliance.base.errors import PaymentRequired

LLAMA = Price(
    "llama-70b",
    version=1,
    in_per_mtok=600_000,
    cached_in_per_mtok=150_000,
    out_per_mtok=800_000,
    embedding_per_mtok=20_000,
)


@pytest.mark.parametrize(
    ("tokens", "musd"),
    [
        (TokenUsage(), 0),
        (TokenUsage(1, 0, 0), 1),
        (TokenUsage(1000, 0, 500), 600 + 400),
        (TokenUsage(1000, 400, 500), 360 + 60 + 400),
        (TokenUsage(1, 1, 1), 1),  # 0.15 + 0.8: rounded up once, on the sum
        (TokenUsage(10, 99, 0), 2),  # never more cached tokens than tokens
        (TokenUsage(-5, -5, -5), 0),
        (TokenUsage(10**9, 0, 10**9), 600_000_000 + 800_000_000),
    ],
)
def test_cost_of_tokens(tokens: TokenUsage, musd: int) -> None:
    assert LLAMA.cost_musd(tokens) == musd


def test_a_request_and_embeddings_have_prices_of_their_own() -> None:
    price = Price("m", in_per_mtok=600_000, embedding_per_mtok=20_000, per_request_musd=7)
    assert price.cost_musd(TokenUsage(1000, 0, 9), is_embedding=True) == 7 + 20
    assert price.cost_musd(TokenUsage(1000)) == 7 + 600
    assert not price.is_free
    assert FREE.is_free


@given(
    st.integers(0, 10**7),
    st.integers(0, 10**7),
    st.integers(0, 10**7),
    st.integers(0, 10**9),
    st.integers(0, 10**9),
)
def test_cost_is_exact_and_never_below(read: int, cached: int, written: int, in_price: int, out: int) -> None:
    price = Price("m", in_per_mtok=in_price, cached_in_per_mtok=in_price // 4, out_per_mtok=out)
    used = min(cached, read)
    exact = (read - used) * in_price + used * (in_price // 4) + written * out
    assert 0 <= price.cost_musd(TokenUsage(read, cached, written)) * 1_000_000 - exact < 1_000_000


BOOK = PriceBook(
    [
        Price("m", version=2, valid_from_ms=2000, out_per_mtok=2),
        Price("m", version=1, valid_from_ms=1000, out_per_mtok=1),
        Price("m", version=3, valid_from_ms=2000, out_per_mtok=3),
        Price("*", version=1, valid_from_ms=1500, out_per_mtok=9),
    ]
)


@pytest.mark.parametrize(
    ("model", "at_ms", "found"),
    [
        ("m", 999, None),
        ("m", 1000, ("m", 1)),
        ("m", 1999, ("m", 1)),
        ("m", 2000, ("m", 3)),  # of two that begin together, the later version
        ("other", 1499, None),
        ("other", 1500, ("*", 1)),
        ("*", 1500, ("*", 1)),
    ],
)
def test_the_version_valid_at_the_time_counts(model: str, at_ms: int, found: tuple[str, int] | None) -> None:
    price = BOOK.find(model, at_ms)
    assert (price and (price.model, price.version)) == found


def test_a_model_without_price_is_refused_or_free() -> None:
    with pytest.raises(PaymentRequired) as refusal:
        PriceBook().price_of("m", 1)
    assert refusal.value.code == "price_unknown"
    assert (
        refusal.value.message
        == "Model 'm' has no price, so a request for it cannot be billed. Ask the operator for one."
    )
    assert PriceBook(is_unpriced_free=True).price_of("m", 1) is FREE
    assert BOOK.price_of("m", 1000).version == 1


def test_prices_at_present_are_listed_by_name() -> None:
    assert [(price.model, price.version) for price in BOOK.current(5000)] == [("m", 3), ("*", 1)]
    assert BOOK.current(0) == []
    assert len(BOOK) == 4


GOOD = b"""{
  "$schema": "prices.schema.json",
  "prices": [
    {"model": "llama-70b", "in": "0.60", "cached_in": "0.15", "out": "0.80"},
    {"model": "nomic", "embedding": 0.02, "per_request": 0.000001},
    {"model": "*", "in": 1, "out": "2.5", "valid_from": "2026-12-01T00:00:00Z", "gpu_hour_markup_percent": 20}
  ]
}"""


def test_a_file_is_read_exactly() -> None:
    file = read_price_file(GOOD)
    assert file.problems == []
    assert [row.line for row in file.rows] == [4, 5, 6]
    llama, nomic, default = (row.price for row in file.rows)
    assert llama == Price(
        "llama-70b",
        in_per_mtok=600_000,
        cached_in_per_mtok=150_000,
        out_per_mtok=800_000,
        embedding_per_mtok=600_000,
    )
    assert (nomic.embedding_per_mtok, nomic.per_request_musd, nomic.cached_in_per_mtok) == (20_000, 1, 0)
    assert (default.valid_from_ms, default.gpu_hour_markup_percent, default.cached_in_per_mtok) == (
        1_796_083_200_000,
        20,
        1_000_000,
    )
    jsonschema.validate(jsons.loads(GOOD), price_file_schema())


@pytest.mark.parametrize(
    ("text", "is_right"),
    [
        ('{"$schema": "prices.schema.json", "prices": []}', True),
        ('{"prices": [{"model": "m"}]}', True),
        ('{"prices": [{"model": "m", "in": "0.000001", "out": 3}]}', True),
        ("{}", False),
        ('{"prices": [{}]}', False),
        ('{"prices": [{"model": ""}]}', False),
        ('{"prices": [{"model": "m", "input": 1}]}', False),
        ('{"prices": [{"model": "m", "in": "1,5"}]}', False),
        ('{"prices": [{"model": "m", "in": "0.1234567"}]}', False),
        ('{"prices": [{"model": "m", "in": -1}]}', False),
        ('{"prices": [{"model": "m", "in": null}]}', False),
        ('{"prices": [{"model": "m", "gpu_hour_markup_percent": 10001}]}', False),
        ('{"prices": ["m"]}', False),
        ('{"price": []}', False),
    ],
)
def test_the_schema_says_what_the_reader_says(text: str, is_right: bool) -> None:
    assert jsonschema.Draft202012Validator(price_file_schema()).is_valid(jsons.loads(text)) is is_right
    assert (not read_price_file(text.encode()).problems) is is_right


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        (
            '{"model": "m",\n "in": "1,5"}',
            "line 4, model 'm', field \"in\": '1,5' is no amount: write dollars as a decimal number, such as 0.60.",
        ),
        (
            '{"model": "m", "out": "0.1234567"}',
            "line 3, model 'm', field \"out\": '0.1234567' has 7 decimals; allowed are at most 6.",
        ),
        ('{"model": "m", "in": -1}', "line 3, model 'm', field \"in\": -1 is out of range; allowed are 0.00"),
        ('{"model": "m", "in": null}', 'field "in": None is no amount'),
        ('{"model": "m", "inn": 1}', "line 3, model 'm', field \"inn\": unknown; did you mean 'in'?"),
        ('{"model": "m", "zzz": 1}', 'field "zzz": unknown; allowed are model, valid_from, in,'),
        ('{"in": 1}', 'line 3, field "model": None is no name'),
        ('{"model": ""}', "field \"model\": '' is no name"),
        ('{"model": 7}', 'field "model": 7 is no name'),
        ('"m"', "line 3: 'm' is no price; write an object with model, in and out."),
        (
            '{"model": "m", "valid_from": "tomorrow"}',
            "field \"valid_from\": 'tomorrow' is no time; write RFC 3339: 2026-12-01T00:00:00Z.",
        ),
        ('{"model": "m", "valid_from": 5}', 'field "valid_from": 5 is no time'),
        (
            '{"model": "m", "gpu_hour_markup_percent": 1.5}',
            "is not allowed; write a whole number, 0 to 10000.",
        ),
        (
            '{"model": "m"},\n{"model": "m"}',
            "line 4, model 'm': the same model and valid_from as in line 3; remove one",
        ),
        ('{"model": "m"} {"model": "n"}', "line 3: expected a comma, or the end of the list, found '{'."),
        ('{"model": "m",}', "line 3, column 15: not JSON:"),
    ],
)
def test_a_wrong_row_is_told_by_line_model_and_field(row: str, problem: str) -> None:
    file = read_price_file(f'{{"prices": [\n\n{row}\n]}}'.encode())
    assert any(problem in line for line in file.problems), file.problems


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "line 1: expected an object"),
        (b"[]", "line 1: expected an object"),
        (b"{}", 'the key "prices" is missing'),
        (b'{"price": []}', "line 1: unknown key 'price'; allowed is \"prices\"."),
        (b'{"prices": {}}', "line 1: expected a list of prices, found '{'."),
        (b'{"prices": []', "not JSON"),
        (b'{"prices": [] } x', "not JSON: Extra data"),
        (b'{"prices": [{"model": "m"}', "found the end of the file"),
        (b"\xff\xfe", "not UTF-8"),
        (b'{"prices": ' + b"[" * 5000, "too deeply"),
        (b" " * 5_000_000, "bytes; allowed are"),
    ],
)
def test_a_file_of_another_form_is_refused(data: bytes, problem: str) -> None:
    problems = read_price_file(data).problems
    assert any(problem in line for line in problems), problems


@given(st.binary(max_size=60))
def test_no_bytes_raise(data: bytes) -> None:
    read_price_file(data)
    read_price_file(b'{"prices": [' + data + b"]}")


def test_right_rows_are_read_beside_wrong_ones() -> None:
    file = read_price_file(b'{"prices": [{"model": "a", "in": "x"}, {"model": "b", "in": "1"}]}')
    assert [row.price.model for row in file.rows] == ["b"]
    assert len(file.problems) == 1
