"""A large metrics page (5 MB, thousands of series): our way from its bytes to the answer beside prometheus-client's plain parse of it.

Run by `python -m bench.normalise`. The smallest of several rounds counts. The last row is what other requests feel: the longest that
the event loop was kept from its work while the page was read in a thread, as the appliance does it.
"""

import asyncio
import platform
import time
from collections.abc import Callable

from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics_of
from prometheus_client.parser import text_string_to_metric_families as text_of

from appliance.base.metrics.exposition_read import read_page
from appliance.engines.metrics.normalise import Normalised, normalise

TARGET_BYTES = 5_000_000
BUCKETS = (
    "0.3",
    "0.5",
    "0.8",
    "1.0",
    "1.5",
    "2.0",
    "2.5",
    "5.0",
    "10.0",
    "15.0",
    "20.0",
    "30.0",
    "40.0",
    "50.0",
    "60.0",
    "120.0",
    "240.0",
    "480.0",
    "960.0",
    "1920.0",
    "7680.0",
    "+Inf",
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
    """Write a vLLM's page for so many models that it has the size."""
    models = 1
    while len(page := _page(models)) < target_bytes:
        models += max(1, int(models * (target_bytes / len(page) - 1)))
    return page


def _page(models: int) -> bytes:
    rows: list[str] = []
    labels = [
        f'engine="0",model_name="meta-llama/Llama-3.2-3B-instruct-{number}"' for number in range(models)
    ]
    for name in HISTOGRAMS:
        rows += [f"# HELP vllm:{name} Histogram of {name}.", f"# TYPE vllm:{name} histogram"]
        for own in labels:
            rows += [
                f'vllm:{name}_bucket{{{own},le="{bound}"}} {at * 7}.0' for at, bound in enumerate(BUCKETS)
            ]
            rows += [
                f"vllm:{name}_count{{{own}}} {(len(BUCKETS) - 1) * 7}.0",
                f"vllm:{name}_sum{{{own}}} 812.5",
            ]
    for kind, names in (("counter", COUNTERS), ("gauge", GAUGES)):
        for name in names:
            rows += [f"# HELP vllm:{name} The {name}.", f"# TYPE vllm:{name} {kind}"]
            rows += [f"vllm:{name}{{{own}}} {0.25 if 'perc' in name else 12345.0}" for own in labels]
    return ("\n".join(rows) + "\n").encode()


def fastest(action: Callable[[], object], rounds: int) -> float:
    """Give the seconds of the quickest round."""
    took = []
    for _ in range(rounds):
        began = time.perf_counter()
        action()
        took.append(time.perf_counter() - began)
    return min(took)


async def longest_pause(raw: bytes) -> float:
    """Give the longest seconds for which the loop did not come round while a thread made text of the page."""
    done = asyncio.get_running_loop().run_in_executor(
        None, lambda: normalise(read_page(raw)).render(openmetrics=False)
    )
    longest, last = 0.0, time.perf_counter()
    while not done.done():
        await asyncio.sleep(0)
        now = time.perf_counter()
        longest, last = max(longest, now - last), now
    await done
    return longest


def main() -> None:
    raw = large_page()
    text = raw.decode()
    done: Normalised = normalise(read_page(raw))
    samples = sum(len(family.samples) for family in done.page)
    print(
        f"Python {platform.python_version()}; page {len(raw) / 1e6:.2f} MB, {samples} samples, {len(done.page.families)} families"
    )
    theirs = fastest(lambda: list(text_of(text)), 2)
    rows = [
        ("prometheus-client, parse alone", theirs),
        ("ours, read alone", fastest(lambda: read_page(raw), 7)),
        ("ours, read and map", fastest(lambda: normalise(read_page(raw)), 5)),
        (
            "ours, read, map, write text",
            fastest(lambda: normalise(read_page(raw)).render(openmetrics=False), 5),
        ),
        (
            "ours, read, map, write OpenMetrics",
            fastest(lambda: normalise(read_page(raw)).render(openmetrics=True), 3),
        ),
    ]
    for name, seconds in rows:
        print(f"{name:40} {seconds * 1000:9.1f} ms   {theirs / seconds:6.1f} ×")
    print(f"{'longest pause of the event loop':40} {asyncio.run(longest_pause(raw)) * 1000:9.1f} ms")
    out = done.render(openmetrics=True).decode()
    print(
        f"{'parsed again as OpenMetrics':40} {sum(len(family.samples) for family in openmetrics_of(out))} samples, valid"
    )


if __name__ == "__main__":
    main()
