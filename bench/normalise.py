"""A large metrics page (5 MB, thousands of series): normalised by us, beside prometheus-client's plain parse of it.

Run by `python -m bench.normalise`. The fastest of several rounds counts. The last row is what other requests
notice: how long the event loop was blocked at most while a thread read the page, as the appliance does it.
"""

import asyncio
import platform
import time
from collections.abc import Callable

from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from appliance.base.metrics.exposition_read import read_page
from appliance.engines.metrics.normalise import NormalisedPage, normalise

TARGET_BYTES = 5_000_000
BUCKETS = (
    *("0.3", "0.5", "0.8", "1.0", "1.5", "2.0", "2.5", "5.0", "10.0", "15.0", "20.0", "30.0", "40.0", "50.0"),
    *("60.0", "120.0", "240.0", "480.0", "960.0", "1920.0", "7680.0", "+Inf"),
)
HISTOGRAMS = (
    "time_to_first_token_seconds",
    "inter_token_latency_seconds",
    "e2e_request_latency_seconds",
    "request_queue_time_seconds",
    "request_prompt_tokens",
    "request_generation_tokens",
    "iteration_tokens_total",
    "request_prefill_time_seconds",
)
COUNTERS = (
    "prompt_tokens_total",
    "generation_tokens_total",
    "num_preemptions_total",
    "prefix_cache_queries_total",
    "prefix_cache_hits_total",
    "request_success_total",
)
GAUGES = ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")


def large_page(target_bytes: int = TARGET_BYTES) -> bytes:
    """Return the page of a vLLM with so many models that it has about `target_bytes`."""
    models = 1
    while len(page := _page(models)) < target_bytes:
        models += max(1, int(models * (target_bytes / len(page) - 1)))
    return page


def _page(models: int) -> bytes:
    labels = [
        f'engine="0",model_name="meta-llama/Llama-3.2-3B-instruct-{number}"' for number in range(models)
    ]
    rows: list[str] = []
    for name in HISTOGRAMS:
        rows += [f"# HELP vllm:{name} Histogram of {name}.", f"# TYPE vllm:{name} histogram"]
        for own in labels:
            rows += [
                f'vllm:{name}_bucket{{{own},le="{bound}"}} {index * 7}.0'
                for index, bound in enumerate(BUCKETS)
            ]
            rows.append(f"vllm:{name}_count{{{own}}} {(len(BUCKETS) - 1) * 7}.0")
            rows.append(f"vllm:{name}_sum{{{own}}} 812.5")
    for kind, names in (("counter", COUNTERS), ("gauge", GAUGES)):
        for name in names:
            rows += [f"# HELP vllm:{name} The {name}.", f"# TYPE vllm:{name} {kind}"]
            rows += [f"vllm:{name}{{{own}}} {0.25 if 'perc' in name else 12345.0}" for own in labels]
    return ("\n".join(rows) + "\n").encode()


def fastest_s(action: Callable[[], object], rounds: int) -> float:
    """Return the seconds of the fastest round."""
    took_s = []
    for _ in range(rounds):
        started_s = time.perf_counter()
        action()
        took_s.append(time.perf_counter() - started_s)
    return min(took_s)


async def longest_pause_s(raw: bytes) -> float:
    """Return for how many seconds the event loop was blocked at most while a thread rendered the page."""
    done = asyncio.get_running_loop().run_in_executor(
        None, lambda: normalise(read_page(raw)).render(openmetrics=False)
    )
    longest_s, last_s = 0.0, time.perf_counter()
    while not done.done():
        await asyncio.sleep(0)
        now_s = time.perf_counter()
        longest_s, last_s = max(longest_s, now_s - last_s), now_s
    await done
    return longest_s


def main() -> None:
    """Print the table."""
    raw = large_page()
    text = raw.decode()
    done: NormalisedPage = normalise(read_page(raw))
    samples = sum(len(family.samples) for family in done.page)
    size = f"page {len(raw) / 1e6:.2f} MB, {samples} samples, {len(done.page.families)} families"
    print(f"Python {platform.python_version()}; {size}")

    def render(openmetrics: bool) -> bytes:
        return normalise(read_page(raw)).render(openmetrics=openmetrics)

    reference_s = fastest_s(lambda: list(parse_text(text)), 2)
    rows = [
        ("prometheus-client, parse only", reference_s),
        ("ours, parse only", fastest_s(lambda: read_page(raw), 7)),
        ("ours, parse and normalise", fastest_s(lambda: normalise(read_page(raw)), 5)),
        ("ours, and render as text", fastest_s(lambda: render(openmetrics=False), 5)),
        ("ours, and render as OpenMetrics", fastest_s(lambda: render(openmetrics=True), 3)),
    ]
    for name, seconds in rows:
        print(f"{name:40} {seconds * 1000:9.1f} ms   {reference_s / seconds:6.1f} ×")
    pause_ms = asyncio.run(longest_pause_s(raw)) * 1000
    print(f"{'event loop blocked at most':40} {pause_ms:9.1f} ms")
    out = done.render(openmetrics=True).decode()
    parsed = sum(len(family.samples) for family in parse_openmetrics(out))
    print(f"{'parsed again as OpenMetrics':40} {parsed} samples, valid")


if __name__ == "__main__":
    main()
