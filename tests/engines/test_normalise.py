"""Metrics pages of every generation get the same names; a metric that is renamed, of another kind or out of range is reported."""

from pathlib import Path

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics_of
from prometheus_client.parser import text_string_to_metric_families as text_of

from appliance.base.metrics.exposition_read import read_page
from appliance.engines.metrics.extras import NO_EXTRAS, EngineExtras
from appliance.engines.metrics.families import GATEWAY, KTHENA, METRICS
from appliance.engines.metrics.normalise import NormalisedPage, normalise
from tests.fakes.engine_pages import (
    ALL,
    LLAMA_2024,
    LLAMA_2026,
    PAGES,
    SGLANG_2026,
    SGLANG_FRESH,
    VLLM_2024,
    VLLM_2025,
    VLLM_2026,
    PageOf,
    page,
)

every_page = pytest.mark.parametrize("of", PAGES, ids=[one.name for one in PAGES])
VALUES = {
    "requests_running": 3,
    "requests_waiting": 2,
    "kv_cache_usage_ratio": 0.25,
    "prompt_tokens_total": 500,
    "generation_tokens_total": 700,
    "prefix_cache_queries_total": 500,
    "prefix_cache_hits_total": 100,
    "request_success_total": 3,
    "preemptions_total": 1,
    "ttft_seconds": 0.5,
    "tpot_seconds": 0.1,
    "e2e_seconds": 6,
    "queue_seconds": 0.2,
}


def made(text: str, kind: str = "auto", extras: EngineExtras = NO_EXTRAS) -> NormalisedPage:
    return normalise(read_page(text.encode()), kind, extras)


def value(out: str, name: str, **labels: str) -> float:
    """The sum of a metric's samples on a page, as prometheus-client reads it; of histograms of their sums."""
    found = [
        sample.value
        for family in text_of(out)
        for sample in family.samples
        if sample.name in {name, name + "_sum"} and labels.items() <= sample.labels.items()
    ]
    assert found, f"{name} is not on the page"
    return sum(found)


@every_page
def test_a_page_of_any_generation_maps_completely(of: PageOf) -> None:
    done = made(page(of))
    assert done.kind == of.kind
    assert {family.name.decode().removeprefix("engine_") for family in done.ours} == set(of.mapped)
    assert (done.missing, done.invalid) == ((), {})
    out = done.render(openmetrics=False).decode()
    for name in of.mapped & set(VALUES):
        expected = (
            400 if of is LLAMA_2026 and name == "prompt_tokens_total" else VALUES[name]
        )  # it leaves out what it found in its cache
        assert value(out, "engine_" + name) == expected, name
    kinds = {
        family.name + ("_total" if family.type == "counter" else ""): family.type for family in text_of(out)
    }
    expected = {spec.name: spec.kind for spec in METRICS if spec.name.removeprefix("engine_") in of.mapped}
    assert {name: kind for name, kind in kinds.items() if name in expected} == expected


@every_page
def test_the_engines_own_page_goes_out_as_it_came(of: PageOf) -> None:
    text = page(of)
    out = made(text).render(openmetrics=False)
    assert out.startswith(text.encode())
    assert made(text.rstrip("\n")).render(openmetrics=False) == out


@every_page
def test_every_page_is_valid_openmetrics_with_the_same_values(of: PageOf) -> None:
    done = made(page(of))
    families = {family.name: family for family in openmetrics_of(done.render(openmetrics=True).decode())}
    for spec in METRICS:
        if spec.name.removeprefix("engine_") not in of.mapped:
            continue
        family = families[spec.name.removesuffix("_total")]
        assert (family.type, family.unit, family.documentation) == (spec.kind, spec.unit, spec.help)
        short = spec.name.removeprefix("engine_")
        if short in VALUES and not (of is LLAMA_2026 and short == "prompt_tokens_total"):
            samples = [s.value for s in family.samples if s.name in {spec.name, spec.name + "_sum"}]
            assert sum(samples) == VALUES[short]
    text = made(page(of)).render(openmetrics=False).decode()
    assert {f.name for f in text_of(text)} - {n + "_created" for n in families} <= {
        name + suffix for name in families for suffix in ("", "_total", "_info")
    }


@every_page
def test_labels_stay_and_histograms_stay_whole(of: PageOf) -> None:
    families = {family.name: family for family in text_of(made(page(of)).render(openmetrics=False).decode())}
    own = dict(part.split("=") for part in of.labels.replace('"', "").split(",")) if of.labels else {}
    assert own.items() <= families["engine_requests_running"].samples[0].labels.items()
    for name in {"ttft_seconds", "tpot_seconds", "e2e_seconds", "queue_seconds"} & of.mapped:
        samples = families["engine_" + name].samples
        assert [s.labels["le"] for s in samples if s.name.endswith("_bucket")] == [
            "0.3",
            "1.0",
            "5.0",
            "+Inf",
        ]
        assert [s.value for s in samples if s.name.endswith("_bucket")] == [0, 1, 2, 3]
        assert [s.value for s in samples if s.name.endswith("_count")] == [3]
        assert all(own.items() <= s.labels.items() for s in samples)


# The kthena: names. Each engine has its own name for generation tokens, and vLLM renamed the time per token.


@every_page
def test_kthena_names_have_kind_and_help_of_the_engine(of: PageOf) -> None:
    families = {family.name: family for family in text_of(made(page(of)).render(openmetrics=False).decode())}
    copies = {copy.name.removesuffix("_total"): copy for copy in KTHENA if of.kind in copy.names}
    absent = (
        {
            "time_to_first_token_seconds",
            "time_per_output_token_seconds",
            "e2e_request_latency_seconds",
            "generation_tokens",
        }
        if of is SGLANG_FRESH
        else set()
    )
    for name, copy in copies.items():
        if name.removeprefix("kthena:") in absent:
            assert name not in families
            continue
        assert families[name].type == copy.kind
        if of.has_types:
            assert families[name].documentation == "What it says."
    if of is not SGLANG_FRESH:
        assert (
            value(made(page(of)).render(openmetrics=False).decode(), "kthena:generation_tokens_total") == 700
        )
    if of.kind != "llamacpp" and of is not SGLANG_FRESH:
        assert (
            value(made(page(of)).render(openmetrics=False).decode(), "kthena:time_per_output_token_seconds")
            == 0.1
        )


RENAMED = [
    (VLLM_2026, "num_requests_running", "requests_running"),
    (VLLM_2026, "kv_cache_usage_perc", "kv_cache_usage_ratio"),
    (VLLM_2026, "generation_tokens", "generation_tokens_total"),
    (VLLM_2026, "e2e_request_latency_seconds", "e2e_seconds"),
    (VLLM_2026, "prefix_cache_hits", "prefix_cache_hits_total"),
    (VLLM_2026, "request_queue_time_seconds", "queue_seconds"),
    (VLLM_2025, "gpu_cache_usage_perc", "kv_cache_usage_ratio"),
    (VLLM_2024, "request_success", "request_success_total"),
    (SGLANG_2026, "num_queue_reqs", "requests_waiting"),
    (SGLANG_2026, "inter_token_latency_seconds", "tpot_seconds"),
    (SGLANG_2026, "num_requests", "request_success_total"),
    (SGLANG_2026, "queue_time_seconds", "queue_seconds"),
    (LLAMA_2024, "requests_processing", "requests_running"),
    (LLAMA_2026, "tokens_predicted", "generation_tokens_total"),
]


@pytest.mark.parametrize(
    ("of", "name", "ours"), RENAMED, ids=[f"{of.name} {name}" for of, name, _ in RENAMED]
)
def test_a_renamed_metric_is_reported_and_no_other(of: PageOf, name: str, ours: str) -> None:
    done = made(page(of, without=name))
    assert done.missing == ("engine_" + ours,)
    out = done.render(openmetrics=False).decode()
    assert value(out, "engine_mapping_missing", metric="engine_" + ours) == 1
    assert value(out, "engine_mapping_missing") == 1
    assert f"renamed_{name}" in out
    whole = made(page(of)).render(openmetrics=False).decode()
    assert value(whole, "engine_mapping_missing", metric="engine_" + ours) == 0


def test_of_two_spellings_the_newer_counts_once() -> None:
    both = PageOf(
        "both",
        "vllm",
        (*VLLM_2026.rows, "gauge gpu_cache_usage_perc 0.75", "histogram time_per_output_token_seconds 9"),
        VLLM_2026.mapped,
    )
    out = made(page(both)).render(openmetrics=False).decode()
    assert value(out, "engine_kv_cache_usage_ratio") == 0.25
    assert value(out, "engine_tpot_seconds") == 0.1
    assert value(out, "kthena:time_per_output_token_seconds") == 9  # the older name comes first here


@pytest.mark.parametrize("said", ["25", "1.01", "-0.5", "NaN", "+Inf"])
def test_a_share_outside_0_to_1_is_reported_and_not_shown(said: str) -> None:
    done = made(
        page(VLLM_2026).replace(
            "vllm:kv_cache_usage_perc{" + VLLM_2026.labels + "} 0.25",
            "vllm:kv_cache_usage_perc{" + VLLM_2026.labels + "} " + said,
        )
    )
    assert done.invalid == {"engine_kv_cache_usage_ratio": "out_of_range"}
    assert done.missing == ()
    out = done.render(openmetrics=False).decode()
    assert 'engine_mapping_invalid{metric="engine_kv_cache_usage_ratio",reason="out_of_range"} 1' in out
    assert "engine_kv_cache_usage_ratio{" not in out


def test_another_kind_of_metric_is_reported_and_not_shown() -> None:
    done = made(
        page(VLLM_2026).replace(
            "# TYPE vllm:generation_tokens_total counter", "# TYPE vllm:generation_tokens_total summary"
        )
    )
    assert done.invalid == {"engine_generation_tokens_total": "other_kind"}
    broken = "\n".join(
        line
        for line in page(VLLM_2026).splitlines()
        if not line.startswith("vllm:time_to_first_token_seconds_sum")
    )
    assert made(broken).invalid == {"engine_ttft_seconds": "broken"}
    assert made(
        "# TYPE vllm:e2e_request_latency_seconds histogram\nvllm:e2e_request_latency_seconds_bucket 1\n"
    ).invalid == {"engine_e2e_seconds": "broken"}


@pytest.mark.parametrize(
    "absent", ["_count", '_bucket{engine="0",model_name="meta-llama/Llama-3.2-3B",le="+Inf"']
)
def test_a_missing_count_or_last_bucket_is_added(absent: str) -> None:
    text = (
        "\n".join(
            line
            for line in page(VLLM_2026).splitlines()
            if not line.startswith("vllm:time_to_first_token_seconds" + absent)
        )
        + "\n"
    )
    assert text != page(VLLM_2026)
    done = made(text)
    assert done.invalid == {}
    family = next(
        f for f in openmetrics_of(done.render(openmetrics=True).decode()) if f.name == "engine_ttft_seconds"
    )
    assert [(s.name[20:], s.labels.get("le"), s.value) for s in family.samples][3:5] == [
        ("bucket", "+Inf", 3),
        ("count", None, 3),
    ]


def test_a_page_without_engine_misses_everything() -> None:
    done = made("process_cpu_seconds_total 5\n")
    assert (done.kind, done.ours) == ("", ())
    assert set(done.missing) == {"engine_" + name for name in ALL}
    assert made("", "sglang").missing == (
        "engine_requests_running",
        "engine_requests_waiting",
        "engine_kv_cache_usage_ratio",
    )
    assert made(page(VLLM_2026), "vllmdisaggregated").missing == ()
    assert made(page(VLLM_2026), "trtllm").kind == ""


def test_an_announced_metric_without_samples_is_not_missing() -> None:
    text = "\n".join(
        line for line in page(VLLM_2026).splitlines() if not line.startswith("vllm:request_success_total{")
    )
    done = made(text)
    assert done.missing == ()
    assert (
        value(
            done.render(openmetrics=False).decode(),
            "engine_mapping_missing",
            metric="engine_request_success_total",
        )
        == 0
    )


def test_adapters_are_those_of_the_newest_row_or_the_extras() -> None:
    assert value(made(page(VLLM_2026)).render(openmetrics=False).decode(), "engine_lora_running") == 2
    assert value(made(page(SGLANG_2026)).render(openmetrics=False).decode(), "engine_lora_running") == 1
    extras = EngineExtras(adapters=("sql", 'odd"one'), max_adapters=1, now_s=1_800_000_000.0)
    out = made(page(LLAMA_2026), extras=extras).render(openmetrics=False).decode()
    assert value(out, "engine_lora_running") == 2
    row = next(s for f in text_of(out) for s in f.samples if s.name == "vllm:lora_requests_info")
    assert (row.labels, row.value) == (
        {"max_lora": "2", "running_lora_adapters": 'sql,odd"one', "waiting_lora_adapters": ""},
        1.8e9,
    )


# The endpoint picker of the Gateway API Inference Extension reads vLLM's names of 2026, and of several rows one.


@every_page
def test_the_endpoint_picker_finds_its_names_for_any_engine(of: PageOf) -> None:
    out = (
        made(page(of), extras=EngineExtras(kv_usage=0.25) if of is LLAMA_2026 else EngineExtras())
        .render(openmetrics=False)
        .decode()
    )
    assert [
        value(out, name)
        for name in ("vllm:num_requests_waiting", "vllm:num_requests_running", "vllm:kv_cache_usage_perc")
    ] == [2, 3, 0.25]
    names = [
        line.split("{")[0].split(" ")[0]
        for line in out.splitlines()
        if line.startswith("vllm:num_requests_running")
    ]
    assert len(names) == 1


def test_several_rows_become_one_for_the_endpoint_picker() -> None:
    rows = page(SGLANG_2026)
    second = "\n".join(
        line.replace('tp_rank="0"', 'tp_rank="1"').replace("0.25", "0.75")
        for line in rows.splitlines()
        if not line.startswith("#")
    )
    out = made(rows + second + "\n").render(openmetrics=False).decode()
    assert (value(out, "vllm:num_requests_running"), value(out, "vllm:kv_cache_usage_perc")) == (6, 0.5)
    assert value(out, "engine_requests_running", tp_rank="1") == 3


def test_the_table_in_the_documentation_is_complete() -> None:
    text = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()
    rows = {line.split("|")[1].strip(): line for line in text.splitlines() if line.startswith("| `engine_")}
    for spec in METRICS:
        row = rows[f"`{spec.name}`"]
        assert spec.kind in row
        for source in spec.sources.values():
            assert all(f"`{name}`" in row for name in source.names), row
    assert all(f"`{copy.name}`" in text for copy in KTHENA)
    assert all(f"`{name}`" in text for name, _, _ in GATEWAY)
