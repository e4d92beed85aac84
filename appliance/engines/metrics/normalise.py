"""Adds our names (families.py), and those that other programs expect, to an engine's metrics page. Pure.

A metric that is missing or invalid is reported, so that one that an engine renamed is noticed. Labels, HELP
and values stay as they are; only names change.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from appliance.base.metrics.exposition_read import MetricFamily, MetricSample, MetricsPage
from appliance.base.metrics.exposition_write import EOF_LINE, render_openmetrics, render_text
from appliance.engines.metrics.copies import (
    complete_histogram,
    copy_family,
    gateway_families,
    kthena_families,
)
from appliance.engines.metrics.derived import derive_family
from appliance.engines.metrics.engine_page import EnginePage
from appliance.engines.metrics.extras import NO_EXTRAS, EngineExtras
from appliance.engines.metrics.families import KINDS, METRICS, OTHER_NAMES, PREFIX, MetricSource, MetricSpec

OUT_OF_RANGE, BROKEN = "out_of_range", "broken"
_NO_SOURCE = MetricSource(())


@dataclass(frozen=True, slots=True)
class NormalisedPage:
    """A page, and what was made of it.

    Attributes:
        kind: vllm, sglang or llamacpp; "" = the page has none of their names.
        page: The parsed page.
        ours: Our metrics.
        kthena: Copies under the `kthena:` names.
        gateway: The families for an endpoint picker that the page does not have itself.
        expected: Our names that a page of this kind should have.
        missing: Those of them that it does not have.
        invalid: Our names that it has and that are not shown → the reason: out_of_range, other_kind, broken.
    """

    kind: str
    page: MetricsPage
    ours: tuple[MetricFamily, ...]
    kthena: tuple[MetricFamily, ...]
    gateway: tuple[MetricFamily, ...]
    expected: tuple[str, ...]
    missing: tuple[str, ...]
    invalid: dict[str, str]

    def has(self, name: str) -> bool:
        """Whether the engine has a metric of ours."""
        return any(family.name == name.encode() for family in self.ours)

    def mapping_families(self) -> list[MetricFamily]:
        """Return `engine_mapping_missing` and `engine_mapping_invalid`."""
        missing = [
            MetricSample(b"", _metric_label(name), b"%d" % (name in self.missing)) for name in self.expected
        ]
        invalid = [
            MetricSample(b"", _metric_label(name) + b',reason="' + reason.encode() + b'"', b"1")
            for name, reason in self.invalid.items()
        ]
        return [
            _make_gauges(
                "mapping_missing", "1 for a metric that should be on the engine's page and is not", missing
            ),
            _make_gauges(
                "mapping_invalid",
                "1 for a metric that the engine has with an impossible value or of another kind",
                invalid,
            ),
        ]

    def render(self, more: Iterable[MetricFamily] = (), *, openmetrics: bool) -> bytes:
        """Write the engine's page with everything that was added; text stays as it is, byte for byte.

        Args:
            more: Further families.
            openmetrics: Write OpenMetrics 1.0; False = text 0.0.4.
        """
        added = [*self.kthena, *self.ours, *self.gateway, *self.mapping_families(), *more]
        if openmetrics:
            return render_openmetrics([*self.page, *added]) + EOF_LINE
        raw = self.page.raw if self.page.is_plain else render_text(self.page)
        return raw + (b"" if raw.endswith(b"\n") or not raw else b"\n") + render_text(added)


def find_kind(page: MetricsPage, kind: str = "auto") -> str:
    """Return the kind of engine that wrote a page.

    1. the configured kind is in the table of names → that one
    2. it is another one                            → "": its metrics are not known
    3. auto                                         → by the names on the page; "" = no known ones

    Args:
        kind: As configured, also by one of its other names; `auto` = not configured.
    """
    kind = OTHER_NAMES.get(kind, kind)
    if kind in KINDS:  # 1
        return kind
    if kind != "auto":  # 2
        return ""
    prefixes = {one: (one.encode() + b":", one.encode() + b"_") for one in KINDS}
    return next(  # 3
        (one for one, starts in prefixes.items() if any(family.name.startswith(starts) for family in page)),
        "",
    )


def normalise(page: MetricsPage, kind: str = "auto", extras: EngineExtras = NO_EXTRAS) -> NormalisedPage:
    """Find our metrics on a page, and report what should be there and is not.

    Args:
        page: Of one engine.
        kind: vllm (or vllmdisaggregated), sglang, llamacpp, or `auto` for the names on the page.
        extras: What is known of the engine besides its page.
    """
    kind = find_kind(page, kind)
    engine_page = EnginePage(page, kind)
    ours: list[MetricFamily] = []
    expected: list[str] = []
    missing: list[str] = []
    invalid: dict[str, str] = {}
    for spec in METRICS:
        source = spec.sources.get(kind) if kind else _NO_SOURCE
        family, reason = _find_metric(spec, source, engine_page, extras)
        if reason:
            invalid[spec.name] = reason
        elif family is not None:
            ours.append(family)
        if source is not None and _is_expected(source, engine_page):
            expected.append(spec.name)
            if family is None and not reason:
                missing.append(spec.name)
    return NormalisedPage(
        kind=kind,
        page=page,
        ours=tuple(ours),
        kthena=tuple(kthena_families(engine_page, kind)),
        gateway=tuple(gateway_families(page, ours, extras)),
        expected=tuple(expected),
        missing=tuple(missing),
        invalid=invalid,
    )


def _is_expected(source: MetricSource, page: EnginePage) -> bool:
    """Whether a page of this kind should have a metric; one that has it always should.

    1. only some configurations have it, or the page is of a generation without it  → no
    2. every page has it                                                            → yes
    3. a page has it once the engine has handled a request                          → if it has
    """
    if source.expected == "never" or page.has_any(source.unless):  # 1
        return page.has_any(source.names)
    return source.expected == "always" or page.has_worked()  # 2, 3


def _find_metric(
    spec: MetricSpec, source: MetricSource | None, page: EnginePage, extras: EngineExtras
) -> tuple[MetricFamily | None, str]:
    """Find one metric of ours.

    1. it is neither derived nor on the page        → none
    2. it is on the page as another kind of metric  → the reason other_kind
    3. it is a histogram that lacks a part          → the reason broken
    4. a value is out of range                      → the reason out_of_range
    5. otherwise                                    → a copy under our name

    Returns:
        (the family, "") or (None, the reason why it is not shown) or (None, "") if it is not there.
    """
    family, reason = derive_family(spec.name, page, extras), ""
    if family is None and source is not None:
        family, reason = page.find(source.names, spec.kind)
    if family is None:  # 1, 2
        return None, reason
    family = copy_family(family, spec.name, spec.kind)
    family.help, family.unit = spec.help.encode(), spec.unit.encode()
    if spec.kind == "histogram":
        return (family, "") if complete_histogram(family) else (None, BROKEN)  # 5, 3
    # A NaN is in no range.
    is_valid = all(spec.low <= float(sample.value) <= spec.high for sample in family.samples)
    return (family, "") if is_valid else (None, OUT_OF_RANGE)  # 5, 4


def _metric_label(name: str) -> bytes:
    return b'metric="' + name.encode() + b'"'


def _make_gauges(name: str, text: str, samples: list[MetricSample]) -> MetricFamily:
    full = (PREFIX + name).encode()
    return MetricFamily(full, "gauge", text.encode(), [sample._replace(name=full) for sample in samples])
