"""Metrics pages, written: families as Prometheus' text 0.0.4 or as OpenMetrics 1.0, and which of the two a scraper wants. Pure.

OpenMetrics is the stricter one: counters end in `_total`, what belongs to one label set stands together, histograms are whole and add
up, `_created` is no metric of its own, and no two metrics share a name. A family that cannot be such a one is written sample by sample
as `unknown`: nothing is lost, and the page stays valid. Source: the OpenMetrics 1.0 specification.
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
Row = tuple[
    bytes, MetricSample
]  # what tells it apart in its group (the value of `le` or `quantile`, else b""), and the sample
Groups = dict[Key, list[Row]]
_FIRST = itemgetter(0)
# Exact: a value has its quotes escaped, so that nothing like this can stand inside of one.
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
    """Give copies with one more label, the first; one of that name that is there already becomes `exported_<name>`, as Prometheus does.

    Takes   value: escaped
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
    """Put families of one name together: one TYPE for all."""
    found: dict[bytes, MetricFamily] = {}
    for family in families:
        one = found.setdefault(
            family.name, MetricFamily(family.name, family.kind, family.help, unit=family.unit)
        )
        one.samples += family.samples
        one.created += family.created
    return list(found.values())


def render_text(families: Iterable[MetricFamily]) -> bytes:
    """Write families as text 0.0.4."""
    out: list[bytes] = []
    for family in families:
        kind = _TEXT_KINDS.get(family.kind, family.kind)
        name = (
            family.name + b"_info"
            if family.kind == "info" and not family.name.endswith(b"_info")
            else family.name
        )
        if family.help:
            out.append(b"# HELP %b %b\n" % (name, family.help))
        out.append(b"# TYPE %b %b\n" % (name, kind.encode()))
        out += [
            _line(sample.name, sample, b" " + sample.stamp if sample.stamp else b"")
            for sample in family.samples
        ]
        if family.created:
            out.append(b"# TYPE %b gauge\n" % family.created[0].name)
            out += [
                _line(sample.name, sample, b" " + sample.stamp if sample.stamp else b"")
                for sample in family.created
            ]
    return b"".join(out)


def render_openmetrics(families: Iterable[MetricFamily]) -> bytes:
    """Write families as OpenMetrics 1.0, without `# EOF` (END)."""
    whole = merge_families(families)
    created = _created_of(whole)  # by the owner's name
    beginnings = {id(one) for one in created.values()}
    groups = {
        id(one): _groups(one, one.created or (created[one.name].samples if one.name in created else []))
        for one in whole
    }
    taken: set[bytes] = set()
    fit: set[int] = set()
    for family in sorted(
        whole, key=lambda one: one.kind == "counter"
    ):  # a counter gives way: its samples keep their name without a kind
        names = _names(family)[1]
        if groups[id(family)] is not None and id(family) not in beginnings and not names & taken:
            taken |= names
            fit.add(id(family))
    told = {
        id(created[one.name]) for one in whole if id(one) in fit and one.name in created
    }  # with their owner
    out: list[bytes] = []
    for family in whole:
        if (rows := groups[id(family)]) is not None and id(family) in fit:
            _write(out, _names(family)[0], family, rows)
        elif id(family) not in told:
            _write_singly(out, family, taken)
    return b"".join(out)


def _created_of(families: list[MetricFamily]) -> dict[bytes, MetricFamily]:
    """Find what the text format has as metrics of their own: the times at which others began. Gives them by their owner's name."""
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
    """Give the family's name in OpenMetrics, and all names that it takes."""
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
    """Puts together what has the same labels, whatever their order, `le` and `quantile` apart."""

    def __init__(self, apart: re.Pattern[bytes] | None) -> None:
        self._apart = apart
        self._keys: dict[bytes, Key] = {}

    def key(self, labels: bytes) -> tuple[Key, bytes]:
        """Give what its group is known by, and what tells it apart there."""
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
    """Put together what belongs together; None: OpenMetrics has no such family."""
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
    """Sort a histogram's samples, and say whether they are one: rising buckets up to +Inf, which is the count, and a sum."""
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
    """Sort a summary's samples, and say whether they are one."""
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
            labels = (
                row.labels if not one.isdigit() or kind != "histogram" else _BARE.sub(_with_point, row.labels)
            )  # `1.0`, not `1`
            end = b""
            if row.stamp:
                end = _seconds(row.stamp)
            if row.exemplar and name.endswith((b"_bucket", b"_total")):
                end += b" # " + row.exemplar
            out.append(
                b"%b{%b} %b%b\n" % (name, labels, row.value, end)
                if labels
                else b"%b %b%b\n" % (name, row.value, end)
            )


def _called(name: bytes, kind: str, base: bytes, family: bytes) -> bytes:
    """Give a sample's name in OpenMetrics."""
    if kind == "counter":
        return base + (b"_created" if name.endswith(b"_created") and name != family else b"_total")
    return base + b"_info" if kind == "info" else name


def _with_point(found: re.Match[bytes]) -> bytes:
    return found[1] + b'le="' + found[2] + b'.0"'


def _write_singly(out: list[bytes], family: MetricFamily, taken: set[bytes]) -> None:
    """Write what is no OpenMetrics family as samples of no kind, each name for itself; of the same series only the first."""
    by_name: dict[bytes, dict[Key, MetricSample]] = {}
    for sample in family.samples:
        by_name.setdefault(sample.name, {}).setdefault(tuple(sorted(parse_labels(sample.labels))), sample)
    for name, rows in by_name.items():
        if name in taken:
            continue
        taken.add(name)
        out.append(b"# TYPE %b unknown\n" % name)
        out += [_line(name, row, _seconds(row.stamp)) for row in rows.values()]


def _line(name: bytes, sample: MetricSample, stamp: bytes) -> bytes:
    return b"%b%b %b%b\n" % (name, b"{" + sample.labels + b"}" if sample.labels else b"", sample.value, stamp)


def _help(text: bytes) -> bytes:
    """OpenMetrics wants quotes escaped in HELP, too."""
    return text.replace(b'"', b'\\"')


def _seconds(stamp: bytes) -> bytes:
    return b" %.3f" % (_float(stamp) / 1000) if stamp else b""
