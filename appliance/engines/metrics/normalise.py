"""An engine's metrics page in three forms at once: as it came, under system E's names, and under ours (families.py). Pure.

What was looked for and not found is kept, and so is what was found and cannot be: a renamed metric must be seen, not silently absent.
Labels, HELP and the engine's own numbers are taken over as they are; values change their name only.
"""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from appliance.base.metrics.exposition_read import (
    MetricFamily,
    MetricSample,
    MetricsPage,
    escape_label,
    make_gauge,
    parse_labels,
)
from appliance.base.metrics.exposition_write import EOF_LINE, render_openmetrics, render_text
from appliance.engines.metrics.families import (
    GATEWAY,
    KINDS,
    KTHENA,
    LORA_INFO,
    OTHER_NAMES,
    PREFIX,
    WANTED,
    MetricSource,
    MetricSpec,
)

OUT_OF_RANGE, OTHER_KIND, BROKEN = "out_of_range", "other_kind", "broken"
_FITS = {
    "gauge": {"gauge", "counter", "untyped"},
    "counter": {"counter", "gauge", "untyped"},
    "histogram": {"histogram"},
}
_WHOLE = (b"_bucket", b"_sum", b"_count")
_SAMPLE = MetricSample._make


@dataclass(frozen=True, slots=True)
class EngineExtras:
    """What is known of an engine from elsewhere than its page.

    kv_usage  share of its KV cache in use, 0 to 1 (llama-server: reckoned from its slots); None = not known
    adapters  names of its LoRA adapters that are loaded; None = not known; most_adapters: for how many it has room
    """

    kv_usage: float | None = None
    adapters: tuple[str, ...] | None = None
    most_adapters: int = 0
    now_s: float = 0.0


NOTHING = EngineExtras()


@dataclass(frozen=True, slots=True)
class Normalised:
    """A page, and what was made of it.

    kind        vllm · sglang · llamacpp; "" = the page has none of their names
    gateway     what an endpoint picker looks for and the page does not have under that name
    looked_for  our names that this kind of page should have; missing: those that it has not; odd: name → why it is not shown
    """

    kind: str
    page: MetricsPage
    ours: tuple[MetricFamily, ...]
    kthena: tuple[MetricFamily, ...]
    gateway: tuple[MetricFamily, ...]
    looked_for: tuple[str, ...]
    missing: tuple[str, ...]
    odd: dict[str, str]

    def has(self, name: str) -> bool:
        """Whether the engine gives a metric of ours."""
        return any(family.name == name.encode() for family in self.ours)

    def mapping(self) -> list[MetricFamily]:
        """Give `engine_mapping_missing` and `engine_mapping_invalid`: 1 for what is not found, or is found and cannot be."""
        missing = [
            MetricSample(b"", _metric(name), b"%d" % (name in self.missing)) for name in self.looked_for
        ]
        odd = [
            MetricSample(b"", _metric(name) + b',reason="' + why.encode() + b'"', b"1")
            for name, why in self.odd.items()
        ]
        return [
            _gauge(
                "mapping_missing",
                "1 for a metric that was looked for on the engine's page and is not there",
                missing,
            ),
            _gauge(
                "mapping_invalid",
                "1 for a metric that the engine has with a value or of a kind that it cannot have",
                odd,
            ),
        ]

    def render(self, more: Iterable[MetricFamily] = (), *, openmetrics: bool) -> bytes:
        """Write the engine's page with everything beside it, and `more`.

        What came as text goes out as text byte for byte.
        """
        added = [*self.kthena, *self.ours, *self.gateway, *self.mapping(), *more]
        if openmetrics:
            return render_openmetrics([*self.page, *added]) + EOF_LINE
        raw = self.page.raw if self.page.is_plain else render_text(self.page)
        return raw + (b"" if raw.endswith(b"\n") or not raw else b"\n") + render_text(added)


def _metric(name: str) -> bytes:
    return b'metric="' + name.encode() + b'"'


def _gauge(name: str, text: str, samples: list[MetricSample]) -> MetricFamily:
    full = (PREFIX + name).encode()
    return MetricFamily(full, "gauge", text.encode(), [sample._replace(name=full) for sample in samples])


class _Index:
    """An engine's families by their plain names."""

    def __init__(self, page: MetricsPage, kind: str) -> None:
        shape = re.compile(rb"%b[:_](.+)" % kind.encode())
        self.by_name: dict[str, list[MetricFamily]] = {}
        for family in page:
            if found := shape.fullmatch(family.name):
                self.by_name.setdefault(found[1].removesuffix(b"_total").decode(), []).append(family)

    def find(self, names: Iterable[str], kind: str) -> tuple[MetricFamily | None, str]:
        """Give the first of `names` that fits a kind, and why none does ("" = there is none)."""
        why = ""
        for name in names:
            for family in self.by_name.get(name, ()):
                if family.kind in _FITS[kind]:
                    return family, ""
                why = OTHER_KIND
            if kind == "histogram" and (pieced := self._pieced(name)) is not None:
                return pieced, ""
        return None, why

    def _pieced(self, name: str) -> MetricFamily | None:
        """Put together a histogram whose TYPE line was lost on the way (some exporters drop it)."""
        pieces = [
            one
            for suffix in _WHOLE
            for one in self.by_name.get(name + suffix.decode(), ())
            if one.kind == "untyped"
        ]
        if len(pieces) != len(_WHOLE):
            return None
        return MetricFamily(
            pieces[0].name.removesuffix(b"_bucket"),
            "histogram",
            b"",
            [sample for piece in pieces for sample in piece.samples],
        )

    def has_any(self, names: Iterable[str]) -> bool:
        return any(name in self.by_name for name in names)

    def has_worked(self) -> bool:
        """Whether the engine has answered anything: some counter or histogram of it stands above 0."""
        return any(
            float(sample.value) > 0
            for families in self.by_name.values()
            for family in families
            if family.kind in {"counter", "histogram"}
            for sample in family.samples
            if family.kind == "counter" or sample.name.endswith(b"_count")
        )


def kind_of(page: MetricsPage, kind: str = "auto") -> str:
    """Give the kind of engine that a page is of: as it was said, or (auto) by the names on it; "" = none that is known."""
    kind = OTHER_NAMES.get(kind, kind)
    if kind != "auto":
        return kind if kind in KINDS else ""
    return next(
        (
            one
            for one in KINDS
            if any(f.name.startswith((one.encode() + b":", one.encode() + b"_")) for f in page)
        ),
        "",
    )


def normalise(page: MetricsPage, kind: str = "auto", aside: EngineExtras = NOTHING) -> Normalised:
    """Map a page.

    Takes   kind: vllm (or vllmdisaggregated) · sglang · llamacpp · auto
    """
    kind = kind_of(page, kind)
    index = _Index(page, kind)
    odd: dict[str, str] = {}
    ours, looked_for, missing = [], [], []
    for wanted in WANTED:
        source = wanted.sources.get(kind) if kind else MetricSource(())
        family, why = _of(wanted, source, index, aside) if source or kind == "llamacpp" else (None, "")
        if why:
            odd[wanted.name] = why
        elif family is not None:
            ours.append(family)
        if source is not None and _is_expected(source, index):
            looked_for.append(wanted.name)
            if family is None and not why:
                missing.append(wanted.name)
    kthena, gateway = tuple(_kthena(index, kind)), tuple(_gateway(page, ours, aside))
    return Normalised(kind, page, tuple(ours), kthena, gateway, tuple(looked_for), tuple(missing), odd)


def _is_expected(source: MetricSource, index: _Index) -> bool:
    if source.expected == "never" or index.has_any(source.unless):
        return index.has_any(source.names)
    return source.expected == "always" or index.has_worked()


def _of(
    wanted: MetricSpec, source: MetricSource | None, index: _Index, aside: EngineExtras
) -> tuple[MetricFamily | None, str]:
    """Find one metric. Gives (the family under our name, "") or (None, why it is not shown) or (None, "": not there)."""
    family = _derived(wanted.name, index, aside)
    if family is None and source is not None:
        family, why = index.find(source.names, wanted.kind)
        if why:
            return None, why
    if family is None:
        return None, ""
    family = renamed(family, wanted.name, wanted.kind)
    family.help, family.unit = wanted.help.encode(), wanted.unit.encode()
    if wanted.kind == "histogram":
        return (family, "") if completed(family) else (None, BROKEN)
    is_good = all(wanted.low <= float(sample.value) <= wanted.high for sample in family.samples)  # NaN is not
    return (family, "") if is_good else (None, OUT_OF_RANGE)


def renamed(family: MetricFamily, name: str, kind: str) -> MetricFamily:
    """Give a copy under another name: suffixes of histograms kept, counters' samples called as they are. No exemplars: they are the engine's."""
    new, old = name.encode(), family.name
    names = {
        one: new + (one[len(old) :] if kind == "histogram" else b"")
        for one in {sample.name for sample in family.samples}
    }
    samples = [
        _SAMPLE((names[one], labels, value, stamp, b"")) for one, labels, value, stamp, _ in family.samples
    ]
    created = [sample._replace(name=new.removesuffix(b"_total") + b"_created") for sample in family.created]
    return MetricFamily(new, kind, family.help, samples, created)


def completed(family: MetricFamily) -> bool:
    """Put in what can be told of a histogram that lacks +Inf or its count: each is the other. Says whether it is whole now."""
    name = family.name
    buckets, counts, sums = name + b"_bucket", name + b"_count", name + b"_sum"
    seen_names = Counter(sample.name for sample in family.samples)
    last = sum(b'le="+Inf"' in sample.labels for sample in family.samples)
    if seen_names[counts] == seen_names[sums] == last:  # whole, as nearly all are
        return all(b'le="' in sample.labels for sample in family.samples if sample.name == buckets)
    seen: dict[tuple[tuple[bytes, bytes], ...], dict[bytes, MetricSample]] = {}
    for sample in family.samples:
        pairs = parse_labels(sample.labels)
        bound = next((value for key, value in pairs if key == b"le"), b"")
        group = seen.setdefault(tuple(sorted(pair for pair in pairs if pair[0] != b"le")), {})
        if sample.name != buckets or bound in {b"+Inf", b"Inf", b"inf"}:
            group[sample.name] = sample
        elif not bound:
            return False
    for key, group in seen.items():
        if sums not in group or not (buckets in group or counts in group):
            return False
        labels = b",".join(one + b'="' + value + b'"' for one, value in key)
        if counts not in group:
            family.samples.append(group[buckets]._replace(name=counts, labels=labels))
        elif buckets not in group:
            family.samples.append(
                group[counts]._replace(name=buckets, labels=(labels + b"," if labels else b"") + b'le="+Inf"')
            )
    return True


def _derived(name: str, index: _Index, aside: EngineExtras) -> MetricFamily | None:
    """Give what no engine has under one name.

    1. LoRA adapters: vLLM writes their names into labels, and when into the value: the newest row counts · those known from elsewhere
    2. llama-server's looked-up tokens are those that it found and those that it had to process
    3. llama-server's KV cache in use, of its slots
    """
    short = name.removeprefix(PREFIX)
    if short == "lora_running":  # 1
        info = index.find(("lora_requests_info",), "gauge")[0]
        if info is not None and info.samples:
            newest = max(info.samples, key=lambda sample: float(sample.value))
            running = next(
                (value for key, value in parse_labels(newest.labels) if key == b"running_lora_adapters"), b""
            )
            return _single(b"%d" % len([one for one in running.split(b",") if one.strip()]))
        if aside.adapters is not None and not index.has_any(("lora_pool_slots_used",)):
            return _single(b"%d" % len(aside.adapters))
    if short == "prefix_cache_queries_total":  # 2
        cached, processed = (
            index.find(("prompt_tokens_cached",), "counter")[0],
            index.find(("prompt_tokens",), "counter")[0],
        )
        if cached is not None and processed is not None:
            return _single(
                b"%d" % sum(float(sample.value) for sample in [*cached.samples, *processed.samples])
            )
    if short == "kv_cache_usage_ratio" and aside.kv_usage is not None:  # 3
        return _single(b"%.6g" % aside.kv_usage)
    return None


def _single(value: bytes) -> MetricFamily:
    return MetricFamily(b"", "gauge", b"", [MetricSample(b"", b"", value)])


def _kthena(index: _Index, kind: str) -> Iterable[MetricFamily]:
    for copy in KTHENA:
        family, _ = index.find(copy.names.get(kind, ()), copy.kind)
        if family is not None and family.samples:
            copied = renamed(family, copy.name, copy.kind)
            if copy.kind != "histogram" or completed(copied):
                yield copied


def _gateway(page: MetricsPage, ours: list[MetricFamily], aside: EngineExtras) -> Iterable[MetricFamily]:
    """Give what an endpoint picker looks for, where the page has it under another name. It reads the first row: several become one."""
    for name, source, text in GATEWAY:
        family = next((one for one in ours if one.name == source.encode()), None)
        if name.encode() not in page.families and family is not None and family.samples:
            values = [float(sample.value) for sample in family.samples]
            value = sum(values) / (len(values) if source.endswith("_ratio") else 1)
            yield make_gauge(name, text, value)
    if aside.adapters is not None and LORA_INFO.encode() not in page.families:
        yield lora_info(aside)


def lora_info(aside: EngineExtras) -> MetricFamily:
    """Give the row that tells an endpoint picker which adapters are loaded; its value is the time, in seconds since 1970."""
    names = aside.adapters or ()
    labels = b'max_lora="%d",running_lora_adapters="%b",waiting_lora_adapters=""' % (
        max(aside.most_adapters, len(names)),
        escape_label(",".join(names)),
    )
    return MetricFamily(
        LORA_INFO.encode(),
        "gauge",
        b"LoRA adapters that are loaded, and when that was so",
        [MetricSample(LORA_INFO.encode(), labels, b"%.3f" % aside.now_s)],
    )


def kv_usage_of_slots(slots: object) -> float | None:
    """Reckon the share of llama-server's KV cache in use from its /slots: tokens of requests under way, of all its context.

    Gives   0 to 1; None: this build does not tell
    """
    if not isinstance(slots, list) or not slots:
        return None
    room = used = 0.0
    for slot in slots:
        if (
            not isinstance(slot, dict)
            or not isinstance(slot.get("n_ctx"), int)
            or "is_processing" not in slot
        ):
            return None
        room += slot["n_ctx"]
        if slot["is_processing"]:
            tokens = slot.get("n_prompt_tokens")
            if not isinstance(tokens, int):
                return None
            used += tokens
    return min(1.0, used / room) if room else None
