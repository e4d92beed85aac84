"""The table of our metrics: names that Prometheus accepts, and sources of every engine."""

import re

import pytest

from appliance.engines.metrics.families import (
    GATEWAY,
    KINDS,
    KTHENA,
    LATENCIES,
    MEASURING,
    METRICS,
    OTHER_NAMES,
    PREFIX,
    MetricSpec,
)

every_metric = pytest.mark.parametrize("spec", METRICS, ids=[spec.name for spec in METRICS])


@every_metric
def test_names_follow_the_conventions(spec: MetricSpec) -> None:
    assert re.fullmatch(rf"{PREFIX}[a-z0-9_]+", spec.name)
    assert (spec.kind == "counter") == spec.name.endswith("_total")
    assert not spec.unit or spec.name.endswith(f"_{spec.unit}")
    assert spec.kind != "histogram" or spec.unit == "seconds"
    assert spec.help
    assert not spec.help.endswith(".")


@every_metric
def test_sources_are_plain_names_of_known_kinds(spec: MetricSpec) -> None:
    assert set(spec.sources) <= set(KINDS)
    for source in spec.sources.values():
        assert source.names
        for name in (*source.names, *source.unless):
            assert re.fullmatch(r"[a-z0-9_]+", name)
            assert not name.endswith("_total")
            assert not name.startswith(("vllm", "sglang", "llamacpp"))


def test_names_are_unique() -> None:
    for names in (
        [one.name for one in METRICS],
        [one.name for one in KTHENA],
        [name for name, *_ in GATEWAY],
    ):
        assert len(set(names)) == len(names)


def test_histograms_are_those_of_the_engines_that_measure() -> None:
    assert tuple(f"{PREFIX}{name}_seconds" for name in ("ttft", "tpot", "e2e", "queue")) == LATENCIES
    for spec in METRICS:
        if spec.kind == "histogram":
            assert set(spec.sources) == MEASURING


def test_the_gateways_metrics_are_made_of_ours() -> None:
    assert {source for _, source, _ in GATEWAY} <= {spec.name for spec in METRICS}


def test_other_names_of_kinds_lead_to_kinds() -> None:
    assert set(OTHER_NAMES.values()) <= set(KINDS)
    assert not set(OTHER_NAMES) & set(KINDS)
