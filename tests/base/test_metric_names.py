"""Names and kinds of metrics as `promtool check metrics` wants them.

Source:
    Prometheus' linter for metrics (client_golang, promlint): counters end in _total and nothing else does; no
    kind and no abbreviated or other than base unit in a name; a help text; names in lower case.
"""

import re

import pytest

from appliance.base.metrics.registry import Metrics

ABBREVIATIONS = {
    "s",
    "ms",
    "us",
    "ns",
    "sec",
    "b",
    "kb",
    "mb",
    "gb",
    "tb",
    "pb",
    "m",
    "h",
    "d",
    "min",
    "mib",
    "gib",
}
NOT_BASE = {
    "milliseconds",
    "microseconds",
    "minutes",
    "hours",
    "days",
    "weeks",
    "bits",
    "kilobytes",
    "megabytes",
}
KINDS = {"gauge", "counter", "histogram", "summary"}


def lint(name: str, kind: str, text: str) -> list[str]:
    """Return what the linter says about a family; `kind` as in `# TYPE`."""
    words = set(name.split("_"))
    found = []
    if kind == "counter" and not name.endswith("_total"):
        found.append("a counter does not end in _total")
    if kind not in {"counter", "untyped", "unknown"} and name.endswith("_total"):
        found.append("ends in _total and is no counter")
    if not text.strip():
        found.append("has no help text")
    if words & KINDS:
        found.append("has a kind in its name")
    if words & ABBREVIATIONS or words & NOT_BASE:
        found.append("has no base unit")
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        found.append("is not in lower case")
    return [f"{name} {one}" for one in found]


def test_metrics_of_the_appliance_are_named_as_promtool_wants() -> None:
    metrics = Metrics()
    metrics.router.model("m")
    metrics.request_children("/x", 200)
    metrics.engine_children("m", "b")
    page = metrics.render().decode()
    kinds = dict(re.findall(r"^# TYPE (\S+) (\S+)$", page, re.M))
    texts = dict(re.findall(r"^# HELP (\S+) (.*)$", page, re.M))
    assert len(kinds) > 50
    assert [flaw for name, kind in kinds.items() for flaw in lint(name, kind, texts.get(name, ""))] == []
    assert (kinds["router_models_loaded"], kinds["router_models_loaded_total"]) == ("gauge", "untyped")


@pytest.mark.parametrize(
    ("name", "kind", "flaw"),
    [
        ("a_total", "gauge", "ends in _total"),
        ("a", "counter", "does not end"),
        ("a_ms", "gauge", "no base unit"),
        ("a_gauge", "gauge", "a kind in its name"),
        ("aB", "gauge", "lower case"),
    ],
)
def test_the_linter_finds_flaws(name: str, kind: str, flaw: str) -> None:
    assert flaw in lint(name, kind, "text")[0]
