"""Metrics pages, rendered as Prometheus' text 0.0.4 or as OpenMetrics 1.0. Pure.

OpenMetrics is the stricter format: counters end in `_total`, samples of one label set stand together,
histograms are complete and add up, `_created` is not a metric of its own, and no two metrics share a name. A
family that cannot be rendered so is written sample by sample as `unknown`: nothing is lost, and the page
stays valid.

Source:
    The OpenMetrics 1.0 specification.
"""

import math
import re
from collections.abc import Iterable
from operator import itemgetter

from appliance.base.metrics.exposition_read import MetricFamily, MetricSample, parse_labels

TEXT_CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS_CONTENT_TYPE = "application/openmetrics-text; version=1.0.0; charset=utf-8"
EOF_LINE = b"# EOF\n"
Key = tuple[tuple[bytes, bytes], ...]
Row = tuple[bytes, MetricSample]  # the value of `le` or `quantile`, else b""; the sample
Groups = dict[Key, list[Row]]
_FIRST = itemgetter(0)
# Exact: values have their quotes escaped, so this cannot match inside of one.
_LE, _QUANTILE = re.compile(rb'(?:^|,)le="([^"\\]*)"'), re.compile(rb'(?:^|,)quantile="([^"\\]*)"')
_APART = {"histogram": _LE, "summary": _QUANTILE}
_BARE = re.compile(rb'(^|,)le="(\d+)"')
_TEXT_KINDS = {"info": "gauge", "stateset": "gauge", "gaugehistogram": "untyped"}


def wants_openmetrics(accept: str) -> bool:
    """Say whether an `Accept` header asks for OpenMetrics at least as much as for plain text."""
    plain = openmetrics = 0.0
    for item in accept.split(","):
        kind, *params = (part.strip().lower() for part in item.split(";"))
        options = dict(param.partition("=")[::2] for param in params)
        weight = _weight(options.get("q", "1"))
        if kind == "application/openmetrics-text" and options.get("version", "1.0.0") in {"1.0.0", "0.0.1"}:
            openmetrics = max(openmetrics, weight)
        elif kind in {"text/plain", "text/*"}:
            plain = max(plain, weight)
    return openmetrics > 0 and openmetrics >= plain


def _weight(text: str) -> float:
    try:
        return min(1.0, max(0.0, float(text)))
    except ValueError:
        return 0.0


def add_label(families: Iterable[MetricFamily], name: bytes, value: bytes) -> list[MetricFamily]:
    """Return copies with one more label in front.

    A label of that name that is there already becomes `exported_<name>`, as Prometheus does it.

    Args:
        families: Are not changed.
        name: Of the new label.
        value: Escaped.
    """
    extra, taken = name + b'="' + value + b'"', name + b'="'

    def with_extra(sample: MetricSample) -> MetricSample:
        labels = sample.labels
        if taken in labels:
            labels = b",".join(
                (b"exported_" if key == name else b"") + key + b'="' + text + b'"'
                for key, text in parse_labels(labels)
            )
        return sample._replace(labels=extra + b"," + labels if labels else extra)

    return [
        MetricFamily(
            f.name,
            f.kind,
            f.help,
            [with_extra(s) for s in f.samples],
            [with_extra(s) for s in f.created],
            f.unit,
        )
        for f in families
    ]


def merge_families(families: Iterable[MetricFamily]) -> list[MetricFamily]:
    """Merge families of the same name: one TYPE for all."""
    found: dict[bytes, MetricFamily] = {}
    for family in families:
        one = found.setdefault(
            family.name, MetricFamily(family.name, family.kind, family.help, unit=family.unit)
        )
        one.samples += family.samples
        one.created += family.created
    return list(found.values())


def render_text(families: Iterable[MetricFamily]) -> bytes:
    """Render families as text 0.0.4."""
    out: list[bytes] = []
    for family in families:
        kind = _TEXT_KINDS.get(family.kind, family.kind)
        name = family.name
        if family.kind == "info" and not name.endswith(b"_info"):
            name += b"_info"
        if family.help:
            out.append(b"# HELP %b %b\n" % (name, family.help))
        out.append(b"# TYPE %b %b\n" % (name, kind.encode()))
        out += [_text_line(sample) for sample in family.samples]
        if family.created:
            out.append(b"# TYPE %b gauge\n" % family.created[0].name)
            out += [_text_line(sample) for sample in family.created]
    return b"".join(out)


def render_openmetrics(families: Iterable[MetricFamily]) -> bytes:
    """Render families as OpenMetrics 1.0, without `# EOF` (EOF_LINE)."""
    whole = merge_families(families)
    created = _created_of(whole)  # by the owner's name
    creation_times = {id(one) for one in created.values()}
    groups = {
        id(one): _groups(one, one.created or (created[one.name].samples if one.name in created else []))
        for one in whole
    }
    taken: set[bytes] = set()
    valid: set[int] = set()
    # Counters come last and give way: their samples keep their names without a kind.
    for family in sorted(whole, key=lambda one: one.kind == "counter"):
        names = _names(family)[1]
        if groups[id(family)] is not None and id(family) not in creation_times and not names & taken:
            taken |= names
            valid.add(id(family))
    # Creation times that are rendered with their owner.
    rendered = {id(created[one.name]) for one in whole if id(one) in valid and one.name in created}
    out: list[bytes] = []
    for family in whole:
        if (rows := groups[id(family)]) is not None and id(family) in valid:
            _write(out, _names(family)[0], family, rows)
        elif id(family) not in rendered:
            _write_singly(out, family, taken)
    return b"".join(out)


def _created_of(families: list[MetricFamily]) -> dict[bytes, MetricFamily]:
    """Find the creation times, which the text format has as metrics of their own; by their owner's name."""
    owners = {
        family.name.removesuffix(b"_total") + b"_created": family.name
        for family in families
        if family.kind in {"counter", "histogram", "summary"}
    }
    return {
        owners[family.name]: family
        for family in families
        if family.name in owners and family.kind in {"gauge", "untyped"}
    }


def _names(family: MetricFamily) -> tuple[bytes, set[bytes]]:
    """Return the family's name in OpenMetrics, and all names that it takes."""
    suffixes = {
        "counter": (b"", b"_total", b"_created"),
        "histogram": (b"", b"_bucket", b"_count", b"_sum", b"_created"),
        "summary": (b"", b"_count", b"_sum", b"_created"),
        "info": (b"", b"_info"),
        "gaugehistogram": (b"", b"_bucket", b"_gcount", b"_gsum"),
    }
    base = family.name
    if family.kind == "counter":
        base = base.removesuffix(b"_total")
    elif family.kind == "info":
        base = base.removesuffix(b"_info")
    return base, {base + suffix for suffix in suffixes.get(family.kind, (b"",))}


class _Grouping:
    """Groups samples by their labels in any order, without `le` and `quantile`."""

    def __init__(self, apart: re.Pattern[bytes] | None) -> None:
        self._apart = apart
        self._keys: dict[bytes, Key] = {}

    def key(self, labels: bytes) -> tuple[Key, bytes]:
        """Return the group's key, and the value of `le` or `quantile`, b"" without one."""
        one = b""
        if self._apart is not None and (found := self._apart.search(labels)):
            begin, end = found.span()
            one = found[1]
            labels = labels[:begin] + labels[end:] if begin else labels[end + 1 :]
        key = self._keys.get(labels)
        if key is None:
            key = self._keys[labels] = tuple(sorted(parse_labels(labels)))
        return key, one


def _groups(family: MetricFamily, created: list[MetricSample]) -> Groups | None:
    """Group a family's samples; None = it is not valid in OpenMetrics."""
    grouping = _Grouping(_APART.get(family.kind))
    groups: Groups = {}
    for sample in family.samples:
        key, one = grouping.key(sample.labels)
        rows = groups.get(key)
        if rows is None:
            rows = groups[key] = []
        rows.append((one, sample))
    check = {
        "histogram": _is_whole,
        "summary": _is_summary,
        "counter": _counts,
        "gaugehistogram": _never,
    }.get(family.kind, _is_one)
    if not all(check(family, rows) for rows in groups.values()):
        return None
    for sample in created:
        key, one = grouping.key(sample.labels)
        if key in groups and not groups[key][0][1].stamp:
            groups[key].append((one, sample))
    return groups


def _is_one(family: MetricFamily, rows: list[Row]) -> bool:
    return len(rows) == 1 or family.kind == "stateset"


def _counts(family: MetricFamily, rows: list[Row]) -> bool:
    return len(rows) == 1 and float(rows[0][1].value) >= 0


def _never(family: MetricFamily, rows: list[Row]) -> bool:
    return False


def _is_whole(family: MetricFamily, rows: list[Row]) -> bool:
    """Sort a histogram's samples; say whether it is complete: buckets rising to +Inf = count, and a sum."""
    buckets, others = [], {}
    bucket = family.name + b"_bucket"
    for row in rows:
        if row[1].name == bucket:
            buckets.append((_float(row[0]), float(row[1].value), row))
        else:
            others[row[1].name[len(family.name) :]] = row
    count, total = others.get(b"_count"), others.get(b"_sum")
    if count is None or total is None or not buckets or len(buckets) + 2 != len(rows):
        return False
    buckets.sort(key=_FIRST)
    bounds, values = [bound for bound, _, _ in buckets], [value for _, value, _ in buckets]
    rows[:] = [*(row for _, _, row in buckets), count, total]
    return (
        bounds[-1] == math.inf
        and bounds[0] >= 0
        and len(set(bounds)) == len(bounds)
        and values == sorted(values)
        and values[0] >= 0
        and values[-1] == float(count[1].value)
        and all(map(float.is_integer, values))
        and float(total[1].value) >= 0
        and len({row.stamp for _, row in rows}) == 1
    )


def _is_summary(family: MetricFamily, rows: list[Row]) -> bool:
    """Sort a summary's samples; say whether it is valid."""
    quantiles = sorted(((_float(row[0]), row) for row in rows if row[1].name == family.name), key=_FIRST)
    others = {row[1].name[len(family.name) :]: row for row in rows if row[1].name != family.name}
    bounds = [bound for bound, _ in quantiles]
    values = [float(row[1].value) for row in others.values()]
    count = float(others[b"_count"][1].value) if b"_count" in others else 0.0
    is_good = (
        len(rows) == len(quantiles) + len(others)
        and all(0 <= bound <= 1 for bound in bounds)
        and len(set(bounds)) == len(bounds)
        and count.is_integer()
        and all(value >= 0 for value in values)
        and not any(float(row[1].value) < 0 for _, row in quantiles)
        and len({row.stamp for _, row in rows}) == 1
    )
    rows[:] = [*(row for _, row in quantiles), *others.values()]
    return is_good


def _float(text: bytes) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _write(out: list[bytes], base: bytes, family: MetricFamily, groups: Groups) -> None:
    kind = "unknown" if family.kind == "untyped" else family.kind
    out.append(b"# TYPE %b %b\n" % (base, kind.encode()))
    if family.unit and base.endswith(b"_" + family.unit):
        out.append(b"# UNIT %b %b\n" % (base, family.unit))
    if family.help:
        out.append(b"# HELP %b %b\n" % (base, _help(family.help)))
    names: dict[bytes, bytes] = {}
    for rows in groups.values():
        for one, row in rows:
            name = names.get(row.name) or names.setdefault(
                row.name, _called(row.name, kind, base, family.name)
            )
            labels = row.labels
            if kind == "histogram" and one.isdigit():
                labels = _BARE.sub(_with_point, labels)  # `1.0`, not `1`
            end = _seconds(row.stamp)
            if row.exemplar and name.endswith((b"_bucket", b"_total")):
                end += b" # " + row.exemplar
            out.append(
                b"%b{%b} %b%b\n" % (name, labels, row.value, end)
                if labels
                else b"%b %b%b\n" % (name, row.value, end)
            )


def _called(name: bytes, kind: str, base: bytes, family: bytes) -> bytes:
    """Return a sample's name in OpenMetrics."""
    if kind == "counter":
        return base + (b"_created" if name.endswith(b"_created") and name != family else b"_total")
    return base + b"_info" if kind == "info" else name


def _with_point(found: re.Match[bytes]) -> bytes:
    return found[1] + b'le="' + found[2] + b'.0"'


def _write_singly(out: list[bytes], family: MetricFamily, taken: set[bytes]) -> None:
    """Render a family that is not valid in OpenMetrics: each name as `unknown`, the first of each series."""
    by_name: dict[bytes, dict[Key, MetricSample]] = {}
    for sample in family.samples:
        by_name.setdefault(sample.name, {}).setdefault(tuple(sorted(parse_labels(sample.labels))), sample)
    for name, rows in by_name.items():
        if name in taken:
            continue
        taken.add(name)
        out.append(b"# TYPE %b unknown\n" % name)
        out += [_line(name, row, _seconds(row.stamp)) for row in rows.values()]


def _text_line(sample: MetricSample) -> bytes:
    return _line(sample.name, sample, b" " + sample.stamp if sample.stamp else b"")


def _line(name: bytes, sample: MetricSample, stamp: bytes) -> bytes:
    return b"%b%b %b%b\n" % (name, b"{" + sample.labels + b"}" if sample.labels else b"", sample.value, stamp)


def _help(text: bytes) -> bytes:
    """Escape quotes, which OpenMetrics requires in HELP, too."""
    return text.replace(b'"', b'\\"')


def _seconds(stamp: bytes) -> bytes:
    return b" %.3f" % (_float(stamp) / 1000) if stamp else b""
