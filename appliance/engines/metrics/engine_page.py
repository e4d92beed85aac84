"""An engine's metrics page by the plain names of its families, without prefix and suffix. Pure."""

import re
from collections.abc import Iterable

from appliance.base.metrics.exposition_read import MetricFamily, MetricsPage

OTHER_KIND = "other_kind"
# Kinds on the page that are accepted for a kind of ours: some exporters drop or change the TYPE line.
_ACCEPTED = {
    "gauge": {"gauge", "counter", "untyped"},
    "counter": {"counter", "gauge", "untyped"},
    "histogram": {"histogram"},
}
_HISTOGRAM_PARTS = (b"_bucket", b"_sum", b"_count")


class EnginePage:
    """The families of one engine on a page; `kind` is the engine's, "" = unknown: nothing is found then."""

    def __init__(self, page: MetricsPage, kind: str) -> None:
        pattern = re.compile(rb"%b[:_](.+)" % kind.encode())
        self._by_name: dict[str, list[MetricFamily]] = {}
        for family in page:
            if found := pattern.fullmatch(family.name):
                name = found[1].removesuffix(b"_total").decode()
                self._by_name.setdefault(name, []).append(family)

    def find(self, names: Iterable[str], kind: str) -> tuple[MetricFamily | None, str]:
        """Find the first of `names` of an accepted kind.

        Args:
            kind: gauge, counter or histogram.

        Returns:
            (the family, "") or (None, OTHER_KIND) or (None, "") if there is none.
        """
        reason = ""
        for name in names:
            for family in self._by_name.get(name, ()):
                if family.kind in _ACCEPTED[kind]:
                    return family, ""
                reason = OTHER_KIND
            if kind == "histogram" and (joined := self._join_histogram(name)) is not None:
                return joined, ""
        return None, reason

    def has_any(self, names: Iterable[str]) -> bool:
        """Whether the page has one of `names`."""
        return any(name in self._by_name for name in names)

    def has_worked(self) -> bool:
        """Whether the engine has handled any request: a counter, or the count of a histogram, is above 0."""
        return any(
            float(sample.value) > 0
            for families in self._by_name.values()
            for family in families
            if family.kind in {"counter", "histogram"}
            for sample in family.samples
            if family.kind == "counter" or sample.name.endswith(b"_count")
        )

    def _join_histogram(self, name: str) -> MetricFamily | None:
        """Join a histogram whose TYPE line is missing; None = a part is missing as well."""
        parts = [
            family
            for suffix in _HISTOGRAM_PARTS
            for family in self._by_name.get(name + suffix.decode(), ())
            if family.kind == "untyped"
        ]
        if len(parts) != len(_HISTOGRAM_PARTS):
            return None
        full_name = parts[0].name.removesuffix(b"_bucket")
        return MetricFamily(
            full_name, "histogram", b"", [sample for part in parts for sample in part.samples]
        )
