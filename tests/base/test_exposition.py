"""Metrics pages parsed and rendered, compared with prometheus-client over odd labels and odd values."""

import math
import random
from collections.abc import Iterable
from typing import Any

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics_of
from prometheus_client.parser import text_string_to_metric_families as text_of

from appliance.base.metrics.exposition_read import (
    InvalidPage,
    MetricFamily,
    MetricsPage,
    escape_label,
    parse_labels,
    read_page,
    unescape_label,
)
from appliance.base.metrics.exposition_write import (
    EOF_LINE,
    add_label,
    merge_families,
    render_openmetrics,
    render_text,
    wants_openmetrics,
)

Row = tuple[str, tuple[tuple[str, str], ...], str, float | None]
ODD = [
    '"',
    "\\",
    "\n",
    "{",
    "}",
    ",",
    "=",
    " ",
    "#",
    "é",
    "漢",
    "a",
    "1",
    "\\n",
    '\\"',
    '",b="',
    "\t",
    "x y",
    "+Inf",
    "# EOF",
]
VALUES = ["0", "1", "3.5", "1e-05", "2.5e+10", "+Inf", "-Inf", "NaN", "-7", "1.7976931348623157e+308"]


def ours(families: Iterable[MetricFamily]) -> list[Row]:
    return sorted(
        (
            sample.name.decode(),
            tuple(
                sorted((key.decode(), unescape_label(value)) for key, value in parse_labels(sample.labels))
            ),
            repr(float(sample.value)),
            int(sample.stamp) / 1000 if sample.stamp else None,
        )
        for family in families
        for sample in [*family.samples, *family.created]
    )


def theirs(families: Iterable[Any], *, raw: str = "") -> list[Row]:
    """What prometheus-client reads; it calls counters without `_total` by a name that is not on the page."""
    rows = []
    for family in families:
        for sample in family.samples:
            name = sample.name
            if family.type == "counter" and name.endswith("_total") and raw and f"\n{name}" not in "\n" + raw:
                name = name.removesuffix("_total")
            rows.append(
                (
                    name,
                    tuple(sorted(sample.labels.items())),
                    repr(float(sample.value)),
                    sample.timestamp and float(sample.timestamp),
                )
            )
    return sorted(rows)


def odd_text(chance: random.Random) -> str:
    return "".join(chance.choice(ODD) for _ in range(chance.randrange(6)))


def odd_labels(chance: random.Random, **more: str) -> str:
    labels = {
        name: odd_text(chance) for name in chance.sample(["a", "b", "model_name", "_x"], chance.randrange(4))
    } | more
    return ",".join(f'{key}="{escape_label(value).decode()}"' for key, value in labels.items())


def odd_page(chance: random.Random) -> str:
    """A page of the text format: every kind, some without TYPE, odd labels, values and times."""
    lines = []
    for number in range(chance.randrange(1, 8)):
        kind = chance.choice(["counter", "gauge", "histogram", "summary", "untyped", ""])
        name = f"vllm:m{number}" + ("_total" if kind == "counter" and chance.random() < 0.7 else "")
        if kind and chance.random() < 0.7:
            lines.append(f"# HELP {name} {escape_label(odd_text(chance)).decode()}x")
        if kind:
            lines.append(f"# TYPE {name} {kind}")
        for _ in range(chance.randrange(1, 4)):
            stamp = f" {chance.randrange(1_700_000_000_000)}" if chance.random() < 0.3 else ""
            labels = odd_labels(chance, n=str(len(lines)))
            if kind == "histogram":
                counts = sorted(chance.randrange(100) for _ in range(3))
                for bound, count in zip(["0.5", "1.0", "+Inf"], counts, strict=True):
                    lines.append(f'{name}_bucket{{{labels},le="{bound}"}} {count}{stamp}')
                lines += [
                    f"{name}_sum{{{labels}}} 5.5{stamp}",
                    f"{name}_count{{{labels}}} {counts[-1]}{stamp}",
                ]
            elif kind == "summary":
                lines += [
                    f'{name}{{{labels},quantile="0.5"}} 1{stamp}',
                    f"{name}_sum{{{labels}}} 5.5{stamp}",
                    f"{name}_count{{{labels}}} 3{stamp}",
                ]
            else:
                lines.append(f"{name}{{{labels}}} {chance.choice(VALUES)}{stamp}")
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("seed", range(150))
def test_any_page_is_parsed_as_by_prometheus_client_without_loss(seed: int) -> None:
    text = odd_page(random.Random(seed))
    page = read_page(text.encode())
    assert ours(page) == theirs(text_of(text), raw=text)
    written = render_text(page).decode()
    assert theirs(text_of(written), raw=written) == theirs(text_of(text), raw=text)
    assert {f.name.decode(): f.kind for f in page if f.kind != "untyped"} == {
        f.name.decode(): f.kind for f in read_page(written.encode()) if f.kind != "untyped"
    }


@pytest.mark.parametrize("seed", range(150))
def test_any_page_becomes_valid_openmetrics_with_all_samples(seed: int) -> None:
    text = odd_page(random.Random(seed))
    page = read_page(text.encode())
    written = (render_openmetrics(page) + EOF_LINE).decode()
    families = list(openmetrics_of(written))  # raises where it is not valid
    rows = theirs(families)
    named = [
        (name if (name, labels) in {row[:2] for row in rows} else name + "_total", labels, value, stamp)
        for name, labels, value, stamp in ours(page)
    ]
    assert rows == sorted(named)
    again = read_page(written.encode())
    assert again.is_openmetrics
    assert not again.is_plain
    assert theirs(text_of(render_text(again).decode())) == rows  # and back


PLAIN = """# HELP a_total Its help with "quotes" and \\\\ and \\n.
# TYPE a_total counter
a_total{x="1"} 5
a_total{x="2"} 6
# TYPE a_created gauge
a_created{x="1"} 1.7e+09
a_created{x="2"} 1.8e+09
# TYPE h histogram
h_bucket{le="1"} 1
h_bucket{le="+Inf"} 2
h_count 2
h_sum 3.5
# TYPE h_created gauge
h_created 1.7e+09
"""


def test_creation_times_are_no_openmetrics_metrics_of_their_own() -> None:
    families = {
        f.name: f for f in openmetrics_of((render_openmetrics(read_page(PLAIN.encode())) + EOF_LINE).decode())
    }
    assert set(families) == {"a", "h"}
    assert [(s.name, s.labels, s.value) for s in families["a"].samples] == [
        ("a_total", {"x": "1"}, 5),
        ("a_created", {"x": "1"}, 1.7e9),
        ("a_total", {"x": "2"}, 6),
        ("a_created", {"x": "2"}, 1.8e9),
    ]
    assert [(s.name, s.labels.get("le")) for s in families["h"].samples] == [
        ("h_bucket", "1.0"),
        ("h_bucket", "+Inf"),
        ("h_count", None),
        ("h_sum", None),
        ("h_created", None),
    ]
    assert families["a"].documentation == 'Its help with "quotes" and \\ and \n.'
    again = render_text(read_page(render_openmetrics(read_page(PLAIN.encode())) + EOF_LINE)).decode()
    assert '# TYPE a_created gauge\na_created{x="1"} 1.7e+09\n' in again
    assert 'with "quotes" and \\\\ and \\n.' in again


@pytest.mark.parametrize(
    ("lines", "kinds"),
    [
        (  # no +Inf, no count
            ["# TYPE h histogram", 'h_bucket{le="1.0"} 1', "h_sum 1"],
            {"h_bucket": "unknown", "h_sum": "unknown"},
        ),
        (
            ["# TYPE h histogram", 'h_bucket{le="+Inf"} 1', "h_sum 1", "h_count 2"],
            {"h_bucket": "unknown", "h_sum": "unknown", "h_count": "unknown"},
        ),
        (
            ["# TYPE h histogram", 'h_bucket{le="1.0"} 5', 'h_bucket{le="+Inf"} 1', "h_sum 1", "h_count 1"],
            {"h_bucket": "unknown", "h_sum": "unknown", "h_count": "unknown"},
        ),
        (["# TYPE c_total counter", "c_total -1"], {"c_total": "unknown"}),
        (
            ["# TYPE c_total counter", "c_total NaN", "# TYPE c_created gauge", "c_created 5"],
            {"c_total": "unknown", "c_created": "unknown"},
        ),
        (  # one name for two families
            ["# TYPE c gauge", "c 1", "# TYPE c_total counter", "c_total 2"],
            {"c": "gauge", "c_total": "unknown"},
        ),
        (["# TYPE g gauge", 'g{a="1"} 1', 'g{a="1"} 2'], {"g": "unknown"}),  # a series twice
        (
            ["# TYPE s summary", 's{quantile="5"} 1', "s_sum 1", "s_count 1"],
            {"s": "unknown", "s_sum": "unknown", "s_count": "unknown"},
        ),
        (
            ["# TYPE x_total histogram", 'x_total_bucket{le="+Inf"} 1', "x_total_sum 1", "x_total_count 1"],
            {"x_total": "histogram"},
        ),
        (["x 1", "y 2", 'x{a="1"} 3'], {"x": "unknown", "y": "unknown"}),
    ],
)
def test_invalid_openmetrics_family_keeps_samples_and_loses_kind(
    lines: list[str], kinds: dict[str, str]
) -> None:
    written = render_openmetrics(read_page("\n".join(lines).encode())) + EOF_LINE
    assert {f.name: f.type for f in openmetrics_of(written.decode())} == kinds


def test_exemplars_and_timestamps_are_kept_where_allowed() -> None:
    source = (
        b'# TYPE c counter\n# HELP c With \\"quotes\\".\nc_total{a="1"} 5 1700000000.5 '
        b'# {trace_id="x} # {"} 1.0 1700000000.1\n'
        b'# TYPE h histogram\n# UNIT h_seconds seconds\nh_bucket{le="+Inf"} 1 # {} 0.5\n'
        b"h_count 1\nh_sum 0.5\n# EOF\n"
    )
    page = read_page(source)
    assert page.families[b"c_total"].samples[0] == (
        b"c_total",
        b'a="1"',
        b"5",
        b"1700000000500",
        b'{trace_id="x} # {"} 1.0 1700000000.1',
    )
    assert render_text(page).startswith(
        b'# HELP c_total With "quotes".\n# TYPE c_total counter\nc_total{a="1"} 5 1700000000500\n'
    )
    families = {f.name: f for f in openmetrics_of((render_openmetrics(page) + EOF_LINE).decode())}
    exemplar = families["c"].samples[0].exemplar
    assert (exemplar.labels, exemplar.value) == ({"trace_id": "x} # {"}, 1.0)
    assert families["h"].samples[0].exemplar.value == 0.5


@pytest.mark.parametrize(
    ("line", "samples"),
    [
        ('a { x = "1" , y="2", } 5', [("a", (("x", "1"), ("y", "2")), "5.0", None)]),
        ("a\t5\t1700000000000\r", [("a", (), "5.0", 1_700_000_000.0)]),
        (r'a{path="C:\models"} 1', [("a", (("path", r"C:\models"),), "1.0", None)]),  # an escape that is none
        ("a{} 1", [("a", (), "1.0", None)]),
        ("  a   .5", [("a", (), "0.5", None)]),
    ],
)
def test_small_format_errors_are_repaired(line: str, samples: list[Row]) -> None:
    page = read_page((line + "\n").encode())
    assert ours(page) == samples
    assert ours(read_page(render_text(page))) == samples
    list(openmetrics_of((render_openmetrics(page) + EOF_LINE).decode()))


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("a 1_000", "is neither a sample"),
        ("a", "is neither a sample"),
        ("5 a", "is neither a sample"),
        ("a{x=1} 5", "has labels"),
        ('a{x="1" y="2"} 5', "has labels"),
        ('a{x="1} 5', "is neither a sample"),
        ("a+5", "is neither a sample"),
        ("<html>", "is neither a sample"),
        ('a{,x="1"} 1', "has labels"),
        ("a 1 2 3", "is neither a sample"),
        ("\x00", "is neither a sample"),
        ('a{x="1"} five', "is neither a sample"),
    ],
)
def test_invalid_line_is_named_with_its_number(line: str, why: str) -> None:
    page = "# TYPE a gauge\n" + "a 1\n" * 70_000 + line + "\na 2\n"
    with pytest.raises(InvalidPage) as caught:
        read_page(page.encode())
    assert (caught.value.number, caught.value.line) == (70_002, line)
    assert f"line 70002 {why}" in str(caught.value)


def test_invalid_utf8_is_named_and_long_lines_are_cut() -> None:
    with pytest.raises(InvalidPage, match="line 2 is not UTF-8: b\\\\xff"):
        read_page(b"a 1\nb\xff 2\n")
    with pytest.raises(InvalidPage) as caught:
        read_page(b"x" * 100_000)
    assert len(caught.value.line) == 201


def test_family_may_be_split_and_precede_its_type() -> None:
    page = read_page(b"a 1\n# TYPE b gauge\nb 1\na 2\n# TYPE a gauge\n# a remark\n#\n# TYPE\nb 3\n")
    assert sorted((f.name, f.kind, len(f.samples)) for f in page) == [(b"a", "gauge", 2), (b"b", "gauge", 2)]


def test_label_is_added_first_and_replaces_none() -> None:
    page = read_page(b'g{a="1"} 1\ng 2\ng{backend="theirs",b="2"} 3\n')
    assert render_text(add_label(page, b"backend", escape_label('our"s'))) == (
        b'# TYPE g untyped\ng{backend="our\\"s",a="1"} 1\ng{backend="our\\"s"} 2\n'
        b'g{backend="our\\"s",exported_backend="theirs",b="2"} 3\n'
    )


def test_families_of_one_name_are_merged() -> None:
    one, other = read_page(b"# TYPE g gauge\ng 1\n"), read_page(b'# TYPE g gauge\ng{a="2"} 2\nx 1\n')
    assert (
        render_text(merge_families([*one, *other]))
        == b'# TYPE g gauge\ng 1\ng{a="2"} 2\n# TYPE x untyped\nx 1\n'
    )


@pytest.mark.parametrize(
    ("accept", "openmetrics"),
    [
        ("", False),
        ("*/*", False),
        ("text/plain", False),
        ("application/openmetrics-text", True),
        ("application/openmetrics-text; version=1.0.0", True),
        (
            "application/openmetrics-text;version=1.0.0;q=0.5,application/openmetrics-text;version=0.0.1;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2",
            True,
        ),
        ("text/plain;version=0.0.4;q=0.9, application/openmetrics-text;q=0.1", False),
        ("application/openmetrics-text;q=0", False),
        ("application/openmetrics-text; version=2.0.0", False),
        ("application/openmetrics-text; q=nonsense", False),
        (";;,;q", False),
    ],
)
def test_format_is_what_the_scraper_accepts(accept: str, openmetrics: bool) -> None:
    assert wants_openmetrics(accept) is openmetrics


def test_values_are_kept_as_written() -> None:
    page = read_page(b"a 1e+09\nb NaN\nc +Inf\nd 0.1\n")
    assert [row[2] for row in ours(page)] == ["1000000000.0", "nan", "inf", "0.1"]
    assert render_text(page).split(b"\n")[1] == b"a 1e+09"
    assert math.isnan(float(page.families[b"b"].samples[0].value))
    assert isinstance(page, MetricsPage)
