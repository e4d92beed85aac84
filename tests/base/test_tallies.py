"""What our counters and histograms write is what prometheus-client's own would write of the same."""

import re
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.openmetrics import exposition

from appliance.base.metrics.tallies import CounterFamily, HistogramFamily

BUCKETS = (0.001, 0.5, 1, 30, 300)
SEEN = [("/a", 0.0), ("/a", 0.001), ("/a", 0.0011), ("/b", 300.0), ("/b", 300.1), ('/odd"\\\n', 7.25)]


def filled(counts: Any, spreads: Any) -> CollectorRegistry:
    registry = CollectorRegistry()
    requests = counts("x_requests", "Requests \\ answered", ["route", "status"], registry=registry)
    seconds = spreads("x_seconds", "Their time", ["route"], buckets=BUCKETS, registry=registry)
    counts("x_never", "Nobody counted", ["why"], registry=registry)
    for route, took_s in SEEN:
        requests.labels(route, "200").inc()
        requests.labels(route, "500").inc(2.5)
        seconds.labels(route).observe(took_s)
    seconds.labels("/gone").observe(1)
    seconds.remove_by_labels({"route": "/gone"})
    requests.remove_by_labels({"status": "500", "route": "/a"})
    return registry


@pytest.mark.parametrize("write", [generate_latest, exposition.generate_latest], ids=["text", "openmetrics"])
def test_output_equals_prometheus_clients(write: Any) -> None:
    ours, theirs = (
        re.sub(r"(_created\S* ).*", r"\1T", write(filled(*kinds)).decode())
        for kinds in ((CounterFamily, HistogramFamily), (Counter, Histogram))
    )
    assert ours == theirs
    assert 'x_seconds_bucket{le="+Inf",route="/b"} 2.0' in ours


def test_child_exists_from_first_use_and_stays_the_same() -> None:
    registry = CollectorRegistry()
    counts = CounterFamily("x", "X", ["a"], registry=registry)
    assert counts.labels("1") is counts.labels("1")
    assert registry.get_sample_value("x_total", {"a": "1"}) == 0


def test_family_is_unique_and_checks_its_labels() -> None:
    registry = CollectorRegistry()
    counts = CounterFamily("x", "X", ["a", "b"], registry=registry)
    with pytest.raises(ValueError, match="Duplicated"):
        CounterFamily("x", "X", ["a"], registry=registry)
    with pytest.raises(ValueError, match="a, b"):
        counts.labels("1")
