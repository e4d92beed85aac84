"""Whole metrics pages of the three engines, by generation: what each exports, by name, kind and labels.

Built from the engines' published lists. `page(generation)` writes one as prometheus-client (or llama-server)
does; `mapped` says which of our metrics it must come to.
"""

from dataclasses import dataclass

BUCKETS = ("0.3", "1.0", "5.0", "+Inf")
ALL = {
    "requests_running",
    "requests_waiting",
    "kv_cache_usage_ratio",
    "prompt_tokens_total",
    "generation_tokens_total",
    "prefix_cache_queries_total",
    "prefix_cache_hits_total",
    "ttft_seconds",
    "tpot_seconds",
    "e2e_seconds",
    "queue_seconds",
    "request_success_total",
    "preemptions_total",
    "lora_running",
}
LLAMA = {"requests_running", "requests_waiting", "prompt_tokens_total", "generation_tokens_total"}


@dataclass(frozen=True)
class PageOf:
    """One generation. Rows are `kind name[labels] value`; of histograms the value is their sum, the count
    is 3."""

    name: str
    kind: str
    rows: tuple[str, ...]
    mapped: frozenset[str]
    labels: str = ""
    mark: str = ":"  # what stands after the prefix
    has_types: bool = True
    has_created: bool = False
    drops_total: bool = False  # an exporter wrote counters without `_total`

    @property
    def prefix(self) -> str:
        return self.kind + self.mark


VLLM = 'engine="0",model_name="meta-llama/Llama-3.2-3B"'
SGLANG = 'engine_type="unified",model_name="qwen",pp_rank="0",tp_rank="0"'

VLLM_2024 = PageOf(
    "vllm 2024",
    "vllm",
    (
        "gauge num_requests_running 3",
        "gauge num_requests_swapped 0",
        "gauge num_requests_waiting 2",
        "gauge gpu_cache_usage_perc 0.25",
        "gauge cpu_cache_usage_perc 0",
        "gauge gpu_prefix_cache_hit_rate -1",
        "counter num_preemptions_total 1",
        "counter prompt_tokens_total 500",
        "counter generation_tokens_total 700",
        "histogram iteration_tokens_total 40",
        "histogram time_to_first_token_seconds 0.5",
        "histogram time_per_output_token_seconds 0.1",
        "histogram e2e_request_latency_seconds 6",
        "histogram request_prompt_tokens 20",
        "histogram request_params_n 3",
        'counter request_success_total{finished_reason="stop"} 3',
        "gauge lora_requests_info 0",
    ),
    frozenset(ALL - {"prefix_cache_queries_total", "prefix_cache_hits_total", "queue_seconds"}),
    labels='model_name="meta-llama/Llama-3.2-3B"',
    has_created=True,
)
VLLM_2025 = PageOf(
    "vllm 2025",
    "vllm",
    (
        "gauge num_requests_running 3",
        "gauge num_requests_waiting 2",
        "gauge gpu_cache_usage_perc 0.25",
        "counter gpu_prefix_cache_queries_total 500",
        "counter gpu_prefix_cache_hits_total 100",
        "counter num_preemptions_total 1",
        "counter prompt_tokens_total 500",
        "counter generation_tokens_total 700",
        'counter request_success_total{finished_reason="stop"} 2',
        'counter request_success_total{finished_reason="length"} 1',
        "histogram request_prompt_tokens 20",
        "histogram iteration_tokens_total 40",
        "histogram time_to_first_token_seconds 0.5",
        "histogram time_per_output_token_seconds 0.1",
        "histogram e2e_request_latency_seconds 6",
        "histogram request_queue_time_seconds 0.2",
        "histogram request_inference_time_seconds 5",
        "gauge lora_requests_info 0",
        'gauge cache_config_info{block_size="16",num_gpu_blocks="8192"} 1',
    ),
    frozenset(ALL),
    labels=VLLM,
    has_created=True,
)
VLLM_2026 = PageOf(
    "vllm 2026",
    "vllm",
    (
        "gauge num_requests_running 3",
        "gauge num_requests_waiting 2",
        'gauge num_requests_waiting_by_reason{reason="capacity"} 2',
        "gauge kv_cache_usage_perc 0.25",
        "counter prefix_cache_queries_total 500",
        "counter prefix_cache_hits_total 100",
        "counter num_preemptions_total 1",
        "counter prompt_tokens_total 500",
        "counter generation_tokens_total 700",
        'counter request_success_total{finished_reason="stop"} 3',
        "histogram iteration_tokens_total 40",
        "histogram time_to_first_token_seconds 0.5",
        "histogram inter_token_latency_seconds 0.1",
        "histogram request_time_per_output_token_seconds 0.2",
        "histogram e2e_request_latency_seconds 6",
        "histogram request_queue_time_seconds 0.2",
        "histogram request_prefill_time_seconds 1",
        "counter spec_decode_num_drafts_total 0",
        "gauge lora_requests_info 0",
        'gauge cache_config_info{block_size="16",num_gpu_blocks="8192"} 1',
    ),
    frozenset(ALL),
    labels=VLLM,
    has_created=True,
)
SGLANG_2024 = PageOf(
    "sglang 2024",
    "sglang",
    (
        "gauge num_running_reqs 3",
        "gauge num_queue_reqs 2",
        "gauge num_used_tokens 900",
        "gauge token_usage 0.25",
        "gauge gen_throughput 86.5",
        "gauge cache_hit_rate 0.2",
        "counter prompt_tokens_total 500",
        "counter generation_tokens_total 700",
        "counter cached_tokens_total 100",
        "counter num_requests_total 3",
        "histogram time_to_first_token_seconds 0.5",
        "histogram time_per_output_token_seconds 0.1",
        "histogram e2e_request_latency_seconds 6",
    ),
    frozenset(ALL - {"queue_seconds", "preemptions_total", "lora_running"}),
    labels='model_name="qwen"',
)
SGLANG_2026 = PageOf(
    "sglang 2026",
    "sglang",
    (
        "gauge num_running_reqs 3",
        "gauge num_queue_reqs 2",
        "gauge num_grammar_queue_reqs 0",
        "gauge num_used_tokens 900",
        "gauge token_usage 0.25",
        "gauge full_token_usage 0.25",
        "gauge gen_throughput 86.5",
        "gauge cache_hit_rate 0.2",
        "gauge utilization 0.5",
        "gauge num_retracted_reqs 0",
        "gauge lora_pool_slots_used 1",
        "gauge lora_pool_slots_total 8",
        "counter prompt_tokens_total 500",
        "counter generation_tokens_total 700",
        'counter cached_tokens_total{cache_source="device"} 60',
        'counter cached_tokens_total{cache_source="host"} 40',
        "counter num_requests_total 3",
        "counter num_aborted_requests_total 0",
        "counter num_so_requests_total 0",
        "counter num_retracted_requests_total 1",
        "histogram time_to_first_token_seconds 0.5",
        "histogram inter_token_latency_seconds 0.1",
        "histogram e2e_request_latency_seconds 6",
        "histogram queue_time_seconds 0.2",
        'histogram per_stage_req_latency_seconds{stage="prefill_waiting"} 0.2',
    ),
    frozenset(ALL),
    labels=SGLANG,
)
SGLANG_FRESH = PageOf(
    "sglang before its first answer",
    "sglang",
    SGLANG_2026.rows[:10],
    frozenset({"requests_running", "requests_waiting", "kv_cache_usage_ratio"}),
    labels=SGLANG,
)
LLAMA_2024 = PageOf(
    "llamacpp 2024",
    "llamacpp",
    (
        "counter prompt_tokens_total 500",
        "counter prompt_seconds_total 1.5",
        "counter tokens_predicted_total 700",
        "counter tokens_predicted_seconds_total 2",
        "counter n_decode_total 700",
        "counter n_busy_slots_per_decode 1.5",
        "gauge prompt_tokens_seconds 300",
        "gauge predicted_tokens_seconds 86.5",
        "gauge kv_cache_usage_ratio 0.25",
        "gauge kv_cache_tokens 900",
        "gauge requests_processing 3",
        "gauge requests_deferred 2",
    ),
    frozenset(LLAMA | {"kv_cache_usage_ratio"}),
)
LLAMA_2026 = PageOf(
    "llamacpp 2026",
    "llamacpp",
    (
        "counter prompt_tokens_total 400",
        "counter prompt_tokens_cached_total 100",
        "counter prompt_seconds_total 1.5",
        "counter tokens_predicted_total 700",
        "counter tokens_predicted_seconds_total 2",
        "counter n_decode_total 700",
        "counter n_tokens_max 90",
        "counter spec_decode_num_drafts_total 0",
        "gauge prompt_tokens_seconds 300",
        "gauge predicted_tokens_seconds 86.5",
        "gauge requests_processing 3",
        "gauge requests_deferred 2",
        "gauge n_busy_slots_per_decode 1.5",
    ),
    frozenset(LLAMA | {"prefix_cache_queries_total", "prefix_cache_hits_total"}),
)

PAGES = [
    VLLM_2024,
    VLLM_2025,
    VLLM_2026,
    PageOf(
        "vllm behind an exporter",
        "vllm",
        VLLM_2026.rows,
        VLLM_2026.mapped,
        labels=VLLM,
        mark="_",
        drops_total=True,
    ),
    PageOf(
        "vllm without types", "vllm", VLLM_2026.rows, VLLM_2026.mapped, labels=VLLM, mark="_", has_types=False
    ),
    SGLANG_2024,
    SGLANG_2026,
    SGLANG_FRESH,
    PageOf(
        "sglang behind an exporter",
        "sglang",
        SGLANG_2026.rows,
        SGLANG_2026.mapped,
        labels=SGLANG,
        mark="_",
        drops_total=True,
    ),
    LLAMA_2024,
    LLAMA_2026,
]


def page(of: PageOf, *, without: str = "") -> str:
    """Write it; `without` a metric, as if the engine had renamed it."""
    lines: list[str] = []
    typed: set[str] = set()
    for row in of.rows:
        kind, rest = row.split(" ", 1)
        named, value = rest.rsplit(" ", 1)
        name, _, more = named.partition("{")
        name = of.prefix + (name.removesuffix("_total") if of.drops_total and kind == "counter" else name)
        if without and name.split(of.mark, 1)[1].removesuffix("_total") == without:
            name = name.replace(without, "renamed_" + without)
        labels = ",".join(part for part in (of.labels, more.rstrip("}")) if part)
        if of.has_types and name not in typed:
            lines += [f"# HELP {name} What it says.", f"# TYPE {name} {kind}"]
            typed.add(name)
        lines += list(_samples(kind, name, labels, value))
        if of.has_created and kind == "counter":
            lines += (
                [f"# TYPE {name.removesuffix('_total')}_created gauge"]
                if name.removesuffix("_total") not in typed
                else []
            )
            typed.add(name.removesuffix("_total"))
            lines.append(f"{name.removesuffix('_total')}_created{{{labels}}} 1.7e+09")
    return "\n".join(lines) + "\n"


def _samples(kind: str, name: str, labels: str, value: str) -> list[str]:
    def line(name: str, value: str, *more: str) -> str:
        both = ",".join(part for part in (labels, *more) if part)
        return f"{name}{{{both}}} {value}" if both else f"{name} {value}"

    if name.endswith("lora_requests_info"):
        return [
            line(name, "1.6e+09", 'max_lora="4"', 'running_lora_adapters="old"', 'waiting_lora_adapters=""'),
            line(
                name,
                "1.7e+09",
                'max_lora="4"',
                'running_lora_adapters="sql,chat"',
                'waiting_lora_adapters="x"',
            ),
        ]
    if kind == "histogram":
        return [
            *(
                line(name + "_bucket", str(count) + ".0", f'le="{bound}"')
                for count, bound in enumerate(BUCKETS)
            ),
            line(name + "_count", "3.0"),
            line(name + "_sum", value),
        ]
    return [line(name, value + (".0" if value.isdigit() else ""))]
