"""Metrics pages, written: families as Prometheus' text 0.0.4 or as OpenMetrics 1.0, and which of the two a scraper wants. Pure.

OpenMetrics is the stricter one: counters end in `_total`, what belongs to one label set stands together, histograms are whole and add
up, `_created` is no metric of its own, and no two metrics share a name. A family that cannot be such a one is written sample by sample
as `unknown`: nothing is lost, and the page stays valid. Source: the OpenMetrics 1.0 specification.
"""

import math
from collections.abc import Iterable

from appliance.base.exposition import Family, Sample, pairs_of

TEXT = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"
END = b"# EOF\n"
Key = tuple[tuple[bytes, bytes], ...]
Groups = dict[Key, list[Sample]]
_ORDER = {b"_bucket": 0, b"_count": 1, b"_sum": 2, b"_created": 3}
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


def labelled(families: Iterable[Family], name: bytes, value: bytes) -> list[Family]:
    """Give copies with one more label, the first; one of that name that is there already becomes `exported_<name>`, as Prometheus does.

    Takes   value: escaped
    """
    extra, taken = name + b'="' + value + b'"', name + b'="'

    def with_extra(sample: Sample) -> Sample:
        labels = sample.labels
        if taken in labels:
            labels = b",".join((b"exported_" if key == name else b"") + key + b'="' + text + b'"' for key, text in pairs_of(labels))
        return sample._replace(labels=extra + b"," + labels if labels else extra)

    return [Family(f.name, f.kind, f.help, [with_extra(s) for s in f.samples], [with_extra(s) for s in f.created], f.unit) for f in families]


def merged(families: Iterable[Family]) -> list[Family]:
    """Put families of one name together: one TYPE for all."""
    found: dict[bytes, Family] = {}
    for family in families:
        one = found.setdefault(family.name, Family(family.name, family.kind, family.help, unit=family.unit))
        one.samples += family.samples
        one.created += family.created
    return list(found.values())


def as_text(families: Iterable[Family]) -> bytes:
    """Write families as text 0.0.4."""
    out: list[bytes] = []
    for family in families:
        kind = _TEXT_KINDS.get(family.kind, family.kind)
        name = family.name + b"_info" if family.kind == "info" and not family.name.endswith(b"_info") else family.name
        if family.help:
            out.append(b"# HELP %b %b\n" % (name, family.help))
        out.append(b"# TYPE %b %b\n" % (name, kind.encode()))
        out += [_line(sample.name, sample, sample.stamp) for sample in family.samples]
        if family.created:
            out.append(b"# TYPE %b gauge\n" % family.created[0].name)
            out += [_line(sample.name, sample, sample.stamp) for sample in family.created]
    return b"".join(out)


def as_openmetrics(families: Iterable[Family]) -> bytes:
    """Write families as OpenMetrics 1.0, without `# EOF` (END)."""
    whole = merged(families)
    created = _created_of(whole)                            # by the owner's name
    beginnings = {id(one) for one in created.values()}
    groups = {id(one): _groups(one, one.created or (created[one.name].samples if one.name in created else [])) for one in whole}
    taken: set[bytes] = set()
    fit: set[int] = set()
    for family in sorted(whole, key=lambda one: one.kind == "counter"):     # a counter gives way: its samples keep their name without a kind
        names = _names(family)[1]
        if groups[id(family)] is not None and id(family) not in beginnings and not names & taken:
            taken |= names
            fit.add(id(family))
    told = {id(created[one.name]) for one in whole if id(one) in fit and one.name in created}      # with their owner
    out: list[bytes] = []
    for family in whole:
        if (rows := groups[id(family)]) is not None and id(family) in fit:
            _write(out, _names(family)[0], family, rows)
        elif id(family) not in told:
            _write_singly(out, family, taken)
    return b"".join(out)


def _created_of(families: list[Family]) -> dict[bytes, Family]:
    """Find what the text format has as metrics of their own: the times at which others began. Gives them by their owner's name."""
    owners = {family.name.removesuffix(b"_total") + b"_created": family.name for family in families
              if family.kind in {"counter", "histogram", "summary"}}
    return {owners[family.name]: family for family in families if family.name in owners and family.kind in {"gauge", "untyped"}}


def _names(family: Family) -> tuple[bytes, set[bytes]]:
    """Give the family's name in OpenMetrics, and all names that it takes."""
    suffixes = {"counter": (b"", b"_total", b"_created"), "histogram": (b"", b"_bucket", b"_count", b"_sum", b"_created"),
                "summary": (b"", b"_count", b"_sum", b"_created"), "info": (b"", b"_info"),
                "gaugehistogram": (b"", b"_bucket", b"_gcount", b"_gsum")}
    base = family.name
    if family.kind == "counter":
        base = base.removesuffix(b"_total")
    elif family.kind == "info":
        base = base.removesuffix(b"_info")
    return base, {base + suffix for suffix in suffixes.get(family.kind, (b"",))}


def _groups(family: Family, created: list[Sample]) -> Groups | None:
    """Put together what has the same labels (`le` and `quantile` apart); None: OpenMetrics has no such family."""
    apart = {"histogram": b"le", "summary": b"quantile"}.get(family.kind)
    groups: Groups = {}
    for sample in family.samples:
        groups.setdefault(_key(sample.labels, apart), []).append(sample)
    check = {"histogram": _is_whole, "summary": _is_summary, "counter": _counts, "gaugehistogram": _never}.get(family.kind, _is_one)
    if not all(check(family, rows) for rows in groups.values()):
        return None
    for sample in created:
        key = _key(sample.labels, apart)
        if key in groups and not any(row.stamp for row in groups[key]):
            groups[key].append(sample)
    return groups


def _key(labels: bytes, apart: bytes | None) -> Key:
    """Give labels in one order, without the one that tells a group's samples apart."""
    return tuple(sorted(pair for pair in pairs_of(labels) if pair[0] != apart)) if labels else ()


def _is_one(family: Family, rows: list[Sample]) -> bool:
    return len(rows) == 1 or family.kind == "stateset"


def _counts(family: Family, rows: list[Sample]) -> bool:
    return len(rows) == 1 and _number(rows[0]) >= 0


def _never(family: Family, rows: list[Sample]) -> bool:
    return False


def _number(sample: Sample) -> float:
    """Give a value; what is no number counts as less than nothing."""
    value = float(sample.value)
    return -math.inf if math.isnan(value) else value


def _of(labels: bytes, name: bytes) -> float:
    return next((float(value) for key, value in pairs_of(labels) if key == name), math.nan)


def _is_whole(family: Family, rows: list[Sample]) -> bool:
    """Sort a histogram's samples, and say whether they are one: rising buckets up to +Inf, which is the count, and a sum."""
    if len({row.stamp for row in rows}) > 1:
        return False
    n = len(family.name)
    try:
        rows.sort(key=lambda row: (_ORDER[row.name[n:]], _of(row.labels, b"le") if row.name[n:] == b"_bucket" else 0.0))
        bounds = [_of(row.labels, b"le") for row in rows if row.name[n:] == b"_bucket"]
    except (KeyError, ValueError):
        return False
    values = [_number(row) for row in rows]
    buckets = values[:len(bounds)]
    return (len(rows) == len(bounds) + 2 and bool(bounds) and bounds[-1] == math.inf and bounds[0] >= 0 and len(set(bounds)) == len(bounds)
            and buckets == sorted(buckets) and buckets[0] >= 0 and all(value.is_integer() for value in values[:-1])
            and values[-2] == buckets[-1] and values[-1] >= 0)


def _is_summary(family: Family, rows: list[Sample]) -> bool:
    n = len(family.name)
    try:
        rows.sort(key=lambda row: (_ORDER.get(row.name[n:], 0), 0.0 if row.name[n:] else _of(row.labels, b"quantile")))
        quantiles = [_of(row.labels, b"quantile") for row in rows if not row.name[n:]]
    except ValueError:
        return False
    others = [row.name[n:] for row in rows if row.name[n:]]
    return (len({row.stamp for row in rows}) == 1 and all(0 <= q <= 1 for q in quantiles) and len(set(quantiles)) == len(quantiles)
            and len(set(others)) == len(others) and all(_number(row) >= 0 or (not row.name[n:] and math.isnan(float(row.value))) for row in rows)
            and all(_number(row).is_integer() for row in rows if row.name[n:] == b"_count"))


def _write(out: list[bytes], base: bytes, family: Family, groups: Groups) -> None:
    kind = "unknown" if family.kind == "untyped" else family.kind
    out.append(b"# TYPE %b %b\n" % (base, kind.encode()))
    if family.unit and base.endswith(b"_" + family.unit):
        out.append(b"# UNIT %b %b\n" % (base, family.unit))
    if family.help:
        out.append(b"# HELP %b %b\n" % (base, _help(family.help)))
    for rows in groups.values():
        for row in rows:
            name = row.name
            if kind == "counter":
                name = base + (b"_created" if name.endswith(b"_created") and name != family.name else b"_total")
            elif kind == "info":
                name = base + b"_info"
            out.append(_line(name, _canonical(row), _seconds(row.stamp), row.exemplar if name.endswith((b"_bucket", b"_total")) else b""))


def _write_singly(out: list[bytes], family: Family, taken: set[bytes]) -> None:
    """Write what is no OpenMetrics family as samples of no kind, each name for itself; of the same series only the first."""
    by_name: dict[bytes, dict[Key, Sample]] = {}
    for sample in family.samples:
        by_name.setdefault(sample.name, {}).setdefault(_key(sample.labels, None), sample)
    for name, rows in by_name.items():
        if name in taken:
            continue
        taken.add(name)
        out.append(b"# TYPE %b unknown\n" % name)
        out += [_line(name, row, _seconds(row.stamp)) for row in rows.values()]


def _line(name: bytes, sample: Sample, stamp: bytes, exemplar: bytes = b"") -> bytes:
    labels = b"{" + sample.labels + b"}" if sample.labels else b""
    return name + labels + b" " + sample.value + (b" " + stamp if stamp else b"") + (b" # " + exemplar if exemplar else b"") + b"\n"


def _canonical(row: Sample) -> Sample:
    """Write a bound as OpenMetrics wants it: `1.0`, not `1`."""
    if b'le="' not in row.labels or not row.name.endswith(b"_bucket"):
        return row
    pairs = pairs_of(row.labels)
    labels = b",".join(key + b'="' + (value + b".0" if key == b"le" and value.isdigit() else value) + b'"' for key, value in pairs)
    return row._replace(labels=labels) if labels != row.labels else row


def _help(text: bytes) -> bytes:
    """OpenMetrics wants quotes escaped in HELP, too."""
    return text.replace(b'"', b'\\"')


def _seconds(stamp: bytes) -> bytes:
    try:
        return b"%.3f" % (float(stamp) / 1000) if stamp else b""
    except ValueError:
        return b""
