"""Our metrics of engines as one table: name, kind, unit, range, and the names that engines gave it so far.

If a new release of an engine renames a metric, the new name is added here. Names of engines are without
prefix (`vllm:` or `vllm_`) and without `_total`: both spellings of both are found. docs/metrics.md shows the
table.

Source:
    The engines' own metric modules, of 2024 to 2026; the page of llama-server's build 11669.
"""

from dataclasses import dataclass
from math import inf
from typing import Literal

PREFIX = "engine_"
KINDS = ("vllm", "sglang", "llamacpp")
OTHER_NAMES = {
    "vllmdisaggregated": "vllm",
    "llama": "llamacpp",
    "llama.cpp": "llamacpp",
    "llama-server": "llamacpp",
}


@dataclass(frozen=True, slots=True)
class MetricSource:
    """The names of a metric at one engine.

    Attributes:
        names: Aliases; the first one that a page has counts.
        expected: When a page without any of them is reported: `always`; `worked` (SGLang shows these after
            its first response); `never` (only some configurations have it).
        unless: Not reported if the page has one of these: they mark generations that never had the metric.
    """

    names: tuple[str, ...]
    expected: Literal["always", "worked", "never"] = "always"
    unless: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class MetricSpec:
    """One metric of ours. Values outside `low` to `high` are reported and not shown.

    Attributes:
        name: As the text format writes it.
        sources: By kind of engine.
    """

    name: str
    kind: Literal["gauge", "counter", "histogram"]
    help: str
    sources: dict[str, MetricSource]
    unit: str = ""
    low: float = 0.0
    high: float = inf


def _sources(
    vllm: MetricSource | str, sglang: MetricSource | str, llamacpp: MetricSource | str = ""
) -> dict[str, MetricSource]:
    given = zip(KINDS, (vllm, sglang, llamacpp), strict=True)
    return {
        kind: source if isinstance(source, MetricSource) else MetricSource((source,))
        for kind, source in given
        if source
    }


def _worked(*names: str, unless: tuple[str, ...] = ()) -> MetricSource:
    return MetricSource(names, "worked", unless)


def _optional(*names: str) -> MetricSource:
    return MetricSource(names, "never")


# Metrics that mark old generations: vLLM's first engine (to 2025), and an old SGLang.
BEFORE_V1 = ("num_requests_swapped", "cpu_cache_usage_perc")
OLD_SGLANG = ("time_per_output_token_seconds",)

METRICS: tuple[MetricSpec, ...] = (
    MetricSpec(
        PREFIX + "requests_running",
        "gauge",
        "Requests that the engine works on",
        _sources("num_requests_running", "num_running_reqs", "requests_processing"),
    ),
    MetricSpec(
        PREFIX + "requests_waiting",
        "gauge",
        "Requests that wait inside the engine",
        _sources("num_requests_waiting", "num_queue_reqs", "requests_deferred"),
    ),
    MetricSpec(
        PREFIX + "kv_cache_usage_ratio",
        "gauge",
        "Share of the KV cache in use by requests, 0 to 1",
        _sources(
            MetricSource(("kv_cache_usage_perc", "gpu_cache_usage_perc")),
            "token_usage",
            _optional("kv_cache_usage_ratio"),
        ),
        "ratio",
        high=1.0,
    ),
    MetricSpec(
        PREFIX + "prompt_tokens_total",
        "counter",
        "Tokens of prompts (llama-server: without those found in its cache)",
        _sources("prompt_tokens", _worked("prompt_tokens"), "prompt_tokens"),
    ),
    MetricSpec(
        PREFIX + "generation_tokens_total",
        "counter",
        "Tokens generated",
        _sources("generation_tokens", _worked("generation_tokens"), "tokens_predicted"),
    ),
    MetricSpec(
        PREFIX + "prefix_cache_queries_total",
        "counter",
        "Tokens of prompts that were looked up in the prefix cache",
        _sources(
            MetricSource(("prefix_cache_queries", "gpu_prefix_cache_queries"), unless=BEFORE_V1),
            _worked("prompt_tokens"),
        ),
    ),
    MetricSpec(
        PREFIX + "prefix_cache_hits_total",
        "counter",
        "Tokens of prompts that were found in the prefix cache",
        _sources(
            MetricSource(("prefix_cache_hits", "gpu_prefix_cache_hits"), unless=BEFORE_V1),
            _optional("cached_tokens"),
            _optional("prompt_tokens_cached"),
        ),
    ),
    MetricSpec(
        PREFIX + "ttft_seconds",
        "histogram",
        "Time to the first token",
        _sources("time_to_first_token_seconds", _worked("time_to_first_token_seconds")),
        "seconds",
    ),
    MetricSpec(
        PREFIX + "tpot_seconds",
        "histogram",
        "Time per token after the first",
        _sources(
            MetricSource(
                (
                    "inter_token_latency_seconds",
                    "time_per_output_token_seconds",
                    "request_time_per_output_token_seconds",
                )
            ),
            _worked("inter_token_latency_seconds", "time_per_output_token_seconds"),
        ),
        "seconds",
    ),
    MetricSpec(
        PREFIX + "e2e_seconds",
        "histogram",
        "Time of whole responses",
        _sources("e2e_request_latency_seconds", _worked("e2e_request_latency_seconds")),
        "seconds",
    ),
    MetricSpec(
        PREFIX + "queue_seconds",
        "histogram",
        "Time in the queue",
        _sources(
            MetricSource(("request_queue_time_seconds",), unless=BEFORE_V1),
            _worked("queue_time_seconds", unless=OLD_SGLANG),
        ),
        "seconds",
    ),
    MetricSpec(
        PREFIX + "request_success_total",
        "counter",
        "Requests that succeeded",
        _sources("request_success", _worked("num_requests")),
    ),
    MetricSpec(
        PREFIX + "preemptions_total",
        "counter",
        "Requests that lost their part of the KV cache while they ran",
        _sources("num_preemptions", _optional("num_retracted_requests")),
    ),
    MetricSpec(
        PREFIX + "lora_running",
        "gauge",
        "LoRA adapters in use (llama-server: loaded)",
        _sources(_optional("lora_requests_info"), _optional("lora_pool_slots_used")),
    ),
)
LATENCIES = tuple(spec.name for spec in METRICS if spec.kind == "histogram")
MEASURING = frozenset({"vllm", "sglang"})  # kinds of engines that measure these themselves


@dataclass(frozen=True, slots=True)
class MetricCopy:
    """A copy under another name (docs/compatibility.md): kind, HELP and labels stay the engine's."""

    name: str
    kind: Literal["gauge", "counter", "histogram"]
    names: dict[str, tuple[str, ...]]


KTHENA: tuple[MetricCopy, ...] = (
    MetricCopy(
        "kthena:generation_tokens_total",
        "counter",
        {"vllm": ("generation_tokens",), "sglang": ("generation_tokens",), "llamacpp": ("tokens_predicted",)},
    ),
    MetricCopy(
        "kthena:num_requests_waiting",
        "gauge",
        {
            "vllm": ("num_requests_waiting",),
            "sglang": ("num_queue_reqs",),
            "llamacpp": ("requests_deferred",),
        },
    ),
    MetricCopy(
        "kthena:time_to_first_token_seconds",
        "histogram",
        {"vllm": ("time_to_first_token_seconds",), "sglang": ("time_to_first_token_seconds",)},
    ),
    MetricCopy(
        "kthena:time_per_output_token_seconds",
        "histogram",
        {
            "vllm": (
                "time_per_output_token_seconds",
                "inter_token_latency_seconds",
                "request_time_per_output_token_seconds",
            ),
            "sglang": ("inter_token_latency_seconds", "time_per_output_token_seconds"),
        },
    ),
    MetricCopy(
        "kthena:e2e_request_latency_seconds",
        "histogram",
        {"vllm": ("e2e_request_latency_seconds",), "sglang": ("e2e_request_latency_seconds",)},
    ),
)

# What the endpoint picker of the Gateway API Inference Extension reads of a server without an engine label
# (vLLM's names), our metrics that they are made of, and the HELP text.
GATEWAY: tuple[tuple[str, str, str], ...] = (
    ("vllm:num_requests_waiting", PREFIX + "requests_waiting", "Requests in the queue"),
    ("vllm:num_requests_running", PREFIX + "requests_running", "Requests running"),
    ("vllm:kv_cache_usage_perc", PREFIX + "kv_cache_usage_ratio", "Share of the KV cache in use, 0 to 1"),
)
LORA_INFO = "vllm:lora_requests_info"
