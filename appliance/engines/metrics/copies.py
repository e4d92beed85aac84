"""Copies of an engine's families under other names: ours, and those that other programs expect. Pure."""

from collections import Counter
from collections.abc import Iterator, Sequence

from appliance.base.metrics.exposition_read import (
    MetricFamily,
    MetricSample,
    MetricsPage,
    escape_label,
    make_gauge,
    parse_labels,
)
from appliance.engines.metrics.engine_page import EnginePage
from appliance.engines.metrics.extras import EngineExtras
from appliance.engines.metrics.families import GATEWAY, KTHENA, LORA_INFO

_SAMPLE = MetricSample._make
_INFINITE = frozenset({b"+Inf", b"Inf", b"inf"})
LabelPairs = tuple[tuple[bytes, bytes], ...]
Group = dict[bytes, MetricSample]  # by the sample's name: the last bucket, the sum, the count


def copy_family(family: MetricFamily, name: str, kind: str) -> MetricFamily:
    """Return a copy under another name.

    The samples of a histogram keep their suffixes; those of a counter get the name itself. Exemplars are left
    out: they are on the engine's own page.
    """
    new, old = name.encode(), family.name
    is_histogram = kind == "histogram"
    names = {
        sample_name: new + (sample_name[len(old) :] if is_histogram else b"")
        for sample_name in {sample.name for sample in family.samples}
    }
    samples = [
        _SAMPLE((names[sample_name], labels, value, stamp, b""))
        for sample_name, labels, value, stamp, _ in family.samples
    ]
    created = [sample._replace(name=new.removesuffix(b"_total") + b"_created") for sample in family.created]
    return MetricFamily(new, kind, family.help, samples, created)


def complete_histogram(family: MetricFamily) -> bool:
    """Add missing `+Inf` buckets and counts, which are equal; return whether it is complete now."""
    name = family.name
    buckets, counts, sums = name + b"_bucket", name + b"_count", name + b"_sum"
    seen = Counter(sample.name for sample in family.samples)
    last_buckets = sum(b'le="+Inf"' in sample.labels for sample in family.samples)
    if seen[counts] == seen[sums] == last_buckets:  # complete, as nearly all are
        return all(b'le="' in sample.labels for sample in family.samples if sample.name == buckets)
    groups = _group_samples(family, buckets)
    if groups is None:
        return False
    for pairs, group in groups.items():
        if sums not in group or not (buckets in group or counts in group):
            return False
        labels = b",".join(key + b'="' + value + b'"' for key, value in pairs)
        if counts not in group:
            family.samples.append(group[buckets]._replace(name=counts, labels=labels))
        elif buckets not in group:
            bound = (labels + b"," if labels else b"") + b'le="+Inf"'
            family.samples.append(group[counts]._replace(name=buckets, labels=bound))
    return True


def _group_samples(family: MetricFamily, buckets: bytes) -> dict[LabelPairs, Group] | None:
    """Group last buckets, sums and counts by their labels; None = a bucket has no bound."""
    groups: dict[LabelPairs, Group] = {}
    for sample in family.samples:
        pairs = parse_labels(sample.labels)
        bound = next((value for key, value in pairs if key == b"le"), b"")
        group = groups.setdefault(tuple(sorted(pair for pair in pairs if pair[0] != b"le")), {})
        if sample.name != buckets or bound in _INFINITE:
            group[sample.name] = sample
        elif not bound:
            return None
    return groups


def kthena_families(page: EnginePage, kind: str) -> Iterator[MetricFamily]:
    """Yield the copies under the `kthena:` names; for compatibility, see docs/compatibility.md."""
    for copy in KTHENA:
        family, _ = page.find(copy.names.get(kind, ()), copy.kind)
        if family is not None and family.samples:
            copied = copy_family(family, copy.name, copy.kind)
            if copy.kind != "histogram" or complete_histogram(copied):
                yield copied


def gateway_families(
    page: MetricsPage, ours: Sequence[MetricFamily], extras: EngineExtras
) -> Iterator[MetricFamily]:
    """Yield the families for an endpoint picker that the page does not have itself.

    The picker reads the first row only, so several rows become one: the sum, or the mean of a ratio.
    """
    for name, source, text in GATEWAY:
        family = next((one for one in ours if one.name == source.encode()), None)
        if name.encode() not in page.families and family is not None and family.samples:
            values = [float(sample.value) for sample in family.samples]
            divisor = len(values) if source.endswith("_ratio") else 1
            yield make_gauge(name, text, sum(values) / divisor)
    if extras.adapters is not None and LORA_INFO.encode() not in page.families:
        yield make_lora_info(extras)


def make_lora_info(extras: EngineExtras) -> MetricFamily:
    """Return the row that lists the loaded adapters for an endpoint picker; its value is `now_s`."""
    names = extras.adapters or ()
    labels = b'max_lora="%d",running_lora_adapters="%b",waiting_lora_adapters=""' % (
        max(extras.max_adapters, len(names)),
        escape_label(",".join(names)),
    )
    sample = MetricSample(LORA_INFO.encode(), labels, b"%.3f" % extras.now_s)
    return MetricFamily(LORA_INFO.encode(), "gauge", b"Loaded LoRA adapters; the value is the time", [sample])
