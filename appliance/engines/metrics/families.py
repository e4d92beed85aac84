"""What is wanted of an engine's metrics, as one table: our name, kind, unit, range, and what each engine has called it over the years.

A new generation that renames a metric costs a word in this file. Names here are without prefix (`vllm:` or `vllm_`) and without
`_total`: both spellings of both are found. Source: the engines' own metric modules, of 2024 to 2026; llama-server's of build 11669 as it
was seen. docs/metrics.md shows the table.
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
    """Where one engine has a metric.

    names     aliases; the first that a page has counts
    expected  when a page without any of them is a fault: always · worked (SGLang shows these after its first answer) · never (only
              some configurations have it)
    unless    … but not if the page has one of these: they mark generations that never had it
    """

    names: tuple[str, ...]
    expected: Literal["always", "worked", "never"] = "always"
    unless: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class MetricSpec:
    """One metric of ours. `name` is as the text format writes it; values outside `low`–`high` are reported and not shown."""

    name: str
    kind: Literal["gauge", "counter", "histogram"]
    help: str
    sources: dict[str, MetricSource]
    unit: str = ""
    low: float = 0.0
    high: float = inf


def _of(
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


def _perhaps(*names: str) -> MetricSource:
    return MetricSource(names, "never")


BEFORE_V1 = ("num_requests_swapped", "cpu_cache_usage_perc")  # of vLLM's first engine, to 2025
OLD_SGLANG = ("time_per_output_token_seconds",)

WANTED: tuple[MetricSpec, ...] = (
    MetricSpec(
        PREFIX + "requests_running",
        "gauge",
        "Requests that the engine works on",
        _of("num_requests_running", "num_running_reqs", "requests_processing"),
    ),
    MetricSpec(
        PREFIX + "requests_waiting",
        "gauge",
        "Requests that wait inside the engine",
        _of("num_requests_waiting", "num_queue_reqs", "requests_deferred"),
    ),
    MetricSpec(
        PREFIX + "kv_cache_usage_ratio",
        "gauge",
        "Share of the KV cache in use by requests, 0 to 1",
        _of(
            MetricSource(("kv_cache_usage_perc", "gpu_cache_usage_perc")),
            "token_usage",
            _perhaps("kv_cache_usage_ratio"),
        ),
        "ratio",
        high=1.0,
    ),
    MetricSpec(
        PREFIX + "prompt_tokens_total",
        "counter",
        "Tokens of prompts (llama-server: without those found in its cache)",
        _of("prompt_tokens", _worked("prompt_tokens"), "prompt_tokens"),
    ),
    MetricSpec(
        PREFIX + "generation_tokens_total",
        "counter",
        "Tokens generated",
        _of("generation_tokens", _worked("generation_tokens"), "tokens_predicted"),
    ),
    MetricSpec(
        PREFIX + "prefix_cache_queries_total",
        "counter",
        "Tokens of prompts that were looked for in the prefix cache",
        _of(
            MetricSource(("prefix_cache_queries", "gpu_prefix_cache_queries"), unless=BEFORE_V1),
            _worked("prompt_tokens"),
        ),
    ),
    MetricSpec(
        PREFIX + "prefix_cache_hits_total",
        "counter",
        "Tokens of prompts that were found in the prefix cache",
        _of(
            MetricSource(("prefix_cache_hits", "gpu_prefix_cache_hits"), unless=BEFORE_V1),
            _perhaps("cached_tokens"),
            _perhaps("prompt_tokens_cached"),
        ),
    ),
    MetricSpec(
        PREFIX + "ttft_seconds",
        "histogram",
        "Time to the first token",
        _of("time_to_first_token_seconds", _worked("time_to_first_token_seconds")),
        "seconds",
    ),
    MetricSpec(
        PREFIX + "tpot_seconds",
        "histogram",
        "Time per token after the first",
        _of(
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
        "Time of whole answers",
        _of("e2e_request_latency_seconds", _worked("e2e_request_latency_seconds")),
        "seconds",
    ),
    MetricSpec(
        PREFIX + "queue_seconds",
        "histogram",
        "Time in line",
        _of(
            MetricSource(("request_queue_time_seconds",), unless=BEFORE_V1),
            _worked("queue_time_seconds", unless=OLD_SGLANG),
        ),
        "seconds",
    ),
    MetricSpec(
        PREFIX + "request_success_total",
        "counter",
        "Requests that were answered",
        _of("request_success", _worked("num_requests")),
    ),
    MetricSpec(
        PREFIX + "preemptions_total",
        "counter",
        "Requests whose place in the KV cache was taken away while they ran",
        _of("num_preemptions", _perhaps("num_retracted_requests")),
    ),
    MetricSpec(
        PREFIX + "lora_running",
        "gauge",
        "LoRA adapters in use (llama-server: loaded)",
        _of(_perhaps("lora_requests_info"), _perhaps("lora_pool_slots_used")),
    ),
)
MEASURING = frozenset({"vllm", "sglang"})  # kinds that have these histograms
LATENCIES = tuple(
    wanted.name for wanted in WANTED if wanted.kind == "histogram"
)  # what the appliance can measure itself


@dataclass(frozen=True, slots=True)
class MetricCopy:
    """A copy under system E's name: kind, HELP and labels stay the engine's."""

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

# What the endpoint picker of the Gateway API Inference Extension reads, under the names that it expects of a server without a label of
# its own kind (vLLM's), and ours that they are made of.
GATEWAY: tuple[tuple[str, str, str], ...] = (
    ("vllm:num_requests_waiting", PREFIX + "requests_waiting", "Requests in line"),
    ("vllm:num_requests_running", PREFIX + "requests_running", "Requests being answered"),
    ("vllm:kv_cache_usage_perc", PREFIX + "kv_cache_usage_ratio", "Share of the KV cache in use, 0 to 1"),
)
LORA_INFO = "vllm:lora_requests_info"
