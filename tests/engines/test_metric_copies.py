"""Copies of families under other names, and histograms that lack a part."""

import pytest

from appliance.base.metrics.exposition_read import MetricFamily, MetricSample, read_page
from appliance.engines.metrics.copies import complete_histogram, copy_family, make_lora_info
from appliance.engines.metrics.extras import EngineExtras


def family_of(text: str, kind: str) -> MetricFamily:
    return next(iter(read_page(f"# TYPE vllm:x {kind}\n{text}".encode())))


def rows(family: MetricFamily) -> list[str]:
    return [
        f"{sample.name.decode()}{{{sample.labels.decode()}}} {sample.value.decode()}"
        for sample in family.samples
    ]


def test_a_histogram_keeps_its_suffixes_and_labels() -> None:
    text = 'vllm:x_bucket{a="1",le="+Inf"} 2\nvllm:x_sum{a="1"} 3\nvllm:x_count{a="1"} 2\n'
    copy = copy_family(family_of(text, "histogram"), "engine_y", "histogram")
    assert rows(copy) == [
        'engine_y_bucket{a="1",le="+Inf"} 2',
        'engine_y_sum{a="1"} 3',
        'engine_y_count{a="1"} 2',
    ]


def test_a_counter_gets_the_name_itself_and_no_exemplar() -> None:
    sample = MetricSample(b"vllm:x_total", b"", b"5", b"", b"{} 1")
    created = MetricSample(b"vllm:x_created", b"", b"1.5")
    copy = copy_family(
        MetricFamily(b"vllm:x_total", "counter", b"", [sample], [created]), "engine_y_total", "counter"
    )
    assert rows(copy) == ["engine_y_total{} 5"]
    assert copy.samples[0].exemplar == b""
    assert copy.created[0].name == b"engine_y_created"


@pytest.mark.parametrize(
    ("text", "is_complete", "added"),
    [
        ('vllm:x_bucket{le="+Inf"} 2\nvllm:x_sum 3\nvllm:x_count 2\n', True, []),
        ('vllm:x_bucket{le="+Inf"} 2\nvllm:x_sum 3\n', True, ["vllm:x_count{} 2"]),
        ("vllm:x_sum 3\nvllm:x_count 2\n", True, ['vllm:x_bucket{le="+Inf"} 2']),
        ('vllm:x_sum{a="1"} 3\nvllm:x_count{a="1"} 2\n', True, ['vllm:x_bucket{a="1",le="+Inf"} 2']),
        ('vllm:x_bucket{le="1"} 2\nvllm:x_sum 3\nvllm:x_count 2\n', True, ['vllm:x_bucket{le="+Inf"} 2']),
        ('vllm:x_bucket{le="+Inf"} 2\nvllm:x_count 2\n', False, []),
        ("vllm:x_sum 3\n", False, []),
        ('vllm:x_bucket 2\nvllm:x_bucket{le="+Inf"} 2\nvllm:x_sum 3\nvllm:x_count 2\n', False, []),
        ("vllm:x_bucket 2\nvllm:x_sum 3\n", False, []),
    ],
)
def test_missing_parts_are_added_if_they_are_known(text: str, is_complete: bool, added: list[str]) -> None:
    family = family_of(text, "histogram")
    before = rows(family)
    assert complete_histogram(family) is is_complete
    assert rows(family) == before + added


@pytest.mark.parametrize(
    ("extras", "labels"),
    [
        (EngineExtras(), 'max_lora="0",running_lora_adapters="",waiting_lora_adapters=""'),
        (
            EngineExtras(adapters=("a", 'b"'), max_adapters=1),
            'max_lora="2",running_lora_adapters="a,b\\"",waiting_lora_adapters=""',
        ),
        (
            EngineExtras(adapters=("a",), max_adapters=4),
            'max_lora="4",running_lora_adapters="a",waiting_lora_adapters=""',
        ),
    ],
)
def test_loaded_adapters_are_one_row(extras: EngineExtras, labels: str) -> None:
    assert rows(make_lora_info(extras)) == [f"vllm:lora_requests_info{{{labels}}} 0.000"]
