"""Our metrics that are computed from several of an engine. Pure."""

from appliance.base.metrics.exposition_read import MetricFamily, MetricSample, parse_labels
from appliance.engines.metrics.engine_page import EnginePage
from appliance.engines.metrics.extras import EngineExtras
from appliance.engines.metrics.families import PREFIX


def derive_family(name: str, page: EnginePage, extras: EngineExtras) -> MetricFamily | None:
    """Return a metric that is derived from others; None = this one is not derived here.

    1. LoRA adapters in use
    2. tokens that were looked up in the prefix cache
    3. KV cache in use, of llama-server's slots
    """
    short = name.removeprefix(PREFIX)
    if short == "lora_running":  # 1
        return _lora_running(page, extras)
    if short == "prefix_cache_queries_total":  # 2
        return _prefix_cache_queries(page)
    if short == "kv_cache_usage_ratio" and extras.kv_usage is not None:  # 3
        return _single(b"%.6g" % extras.kv_usage)
    return None


def _lora_running(page: EnginePage, extras: EngineExtras) -> MetricFamily | None:
    """Count the adapters in use.

    1. vLLM writes their names into labels, and the time into the value   → those of the newest row
    2. the engine counts them itself (SGLang)                             → not derived
    3. they are known from the extras                                     → their number
    """
    info = page.find(("lora_requests_info",), "gauge")[0]
    if info is not None and info.samples:  # 1
        newest = max(info.samples, key=lambda sample: float(sample.value))
        labels = dict(reversed(parse_labels(newest.labels)))
        names = labels.get(b"running_lora_adapters", b"").split(b",")
        return _single(b"%d" % sum(bool(name.strip()) for name in names))
    if extras.adapters is not None and not page.has_any(("lora_pool_slots_used",)):  # 2
        return _single(b"%d" % len(extras.adapters))  # 3
    return None


def _prefix_cache_queries(page: EnginePage) -> MetricFamily | None:
    """Add llama-server's tokens found in the cache and those processed; None = it lacks one of them."""
    cached = page.find(("prompt_tokens_cached",), "counter")[0]
    processed = page.find(("prompt_tokens",), "counter")[0]
    if cached is None or processed is None:
        return None
    return _single(b"%d" % sum(float(sample.value) for sample in [*cached.samples, *processed.samples]))


def _single(value: bytes) -> MetricFamily:
    return MetricFamily(b"", "gauge", b"", [MetricSample(b"", b"", value)])
