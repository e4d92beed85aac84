"""Metrics pages, read: Prometheus' text format 0.0.4 and OpenMetrics 1.0 into families of samples. Pure; bytes stay as they came.

Why not prometheus-client's parser: a page of 5 MB takes it seconds (`python -m bench.normalise`), it gives up without saying where, and it
renames counters. The tests hold this reader against it. Labels are not taken apart unless somebody wants them: both formats write
them alike. What no server may send (an unknown escape, blanks, a comma at the end of the labels) is put right, or refused with its line.

Writing: exposition_out.py
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter
from typing import NamedTuple

CHUNK_BYTES = 64 * 1024  # looked at in one piece: a regular expression holds up all threads while it runs
MAX_SHOWN_CHARACTERS = 200  # characters of a bad line that an error shows

_NAME = rb"[a-zA-Z_:][a-zA-Z0-9_:]*+"
_VALUE = rb"[+-]?\d++(?:\.\d*+)?(?:[eE][+-]?\d++)?|[+-]?\.\d++(?:[eE][+-]?\d++)?|[+-]?[Ii]nf(?:inity)?|[+-]?[Nn]a[Nn]"
_STRING = rb'"[^"\\\n]*+(?:\\[\\n"][^"\\\n]*+)*+"'
_PAIR = rb"[a-zA-Z_][a-zA-Z0-9_]*+=" + _STRING
_EXEMPLAR = rb"(?: # (\{[^\n]*))?"
_LINE = (
    rb"^("
    + _NAME
    + rb")(?:\{((?:"
    + _PAIR
    + rb"(?:,"
    + _PAIR
    + rb")*+)?+)\})?+ ("
    + _VALUE
    + rb")(?: ([+-]?[0-9.eE+-]++))?"
    + _EXEMPLAR
    + rb"$"
)
_SAMPLES = re.compile(_LINE, re.MULTILINE)
# The same with all that is forgiven: blanks and tabs anywhere, a comma at the end of the labels, CR, any escape.
_LOOSE_PAIR = re.compile(
    rb'[ \t]*+([a-zA-Z_][a-zA-Z0-9_]*+)[ \t]*+=[ \t]*+"([^"\\\n]*+(?:\\.[^"\\\n]*+)*+)"[ \t]*+'
)
_LOOSE = re.compile(
    rb"[ \t]*+("
    + _NAME
    + rb")(?:[ \t]*+\{((?:[^\"}]|\"[^\"\\\n]*+(?:\\.[^\"\\\n]*+)*+\")*+)\}[ \t]*+|[ \t]++)("
    + _VALUE
    + rb")(?:[ \t]++([+-]?[0-9.eE+-]++))?(?:[ \t]*+#[ \t]*+(\{.*))?[ \t\r]*$"
)
_ESCAPE = re.compile(rb"\\(.)")
_PAIRS = re.compile(rb'([a-zA-Z_][a-zA-Z0-9_]*+)="([^"\\]*+(?:\\.[^"\\]*+)*+)"')
_FIRST = itemgetter(0)
_SUFFIXES = {
    "counter": (b"", b"_total"),
    "histogram": (b"_bucket", b"_sum", b"_count"),
    "summary": (b"", b"_sum", b"_count"),
    "gaugehistogram": (b"_bucket", b"_gsum", b"_gcount"),
    "info": (b"", b"_info"),
}


class InvalidPage(ValueError):
    """The page is no metrics page.

    Takes   number: of the line, from 1; line: as it came, at most LONGEST_TOLD characters of it
    """

    def __init__(self, why: str, number: int, line: bytes) -> None:
        shown = line.decode("utf-8", "backslashreplace")
        self.number, self.line = (
            number,
            shown if len(shown) <= MAX_SHOWN_CHARACTERS else shown[:MAX_SHOWN_CHARACTERS] + "…",
        )
        super().__init__(f"line {number} {why}: {self.line}")


class MetricSample(NamedTuple):
    """One line. `labels` is what stands between the braces, `stamp` milliseconds since 1970 or b"", `exemplar` `{…} value [seconds]` or b""."""

    name: bytes
    labels: bytes
    value: bytes
    stamp: bytes = b""
    exemplar: bytes = b""


_SAMPLE = MetricSample._make


@dataclass(slots=True)
class MetricFamily:
    """One metric.

    name     as the text format's TYPE line has it: of counters with `_total`, where their samples have it
    kind     counter · gauge · histogram · summary · untyped, and OpenMetrics' info · stateset · gaugehistogram
    samples  may be empty: an engine announces metrics that nothing has happened to yet
    help     as it stands on the page, escaped; created: OpenMetrics' `_created` samples of it
    """

    name: bytes
    kind: str = "untyped"
    help: bytes = b""
    samples: list[MetricSample] = field(default_factory=list)
    created: list[MetricSample] = field(default_factory=list)
    unit: bytes = b""


def make_gauge(name: str, text: str, value: float) -> MetricFamily:
    """Give a gauge of one value without labels."""
    full = name.encode()
    return MetricFamily(full, "gauge", text.encode(), [MetricSample(full, b"", b"%.10g" % value)])


@dataclass(slots=True)
class MetricsPage:
    """A page that was read. `raw` is what came; `is_plain` says that it can be passed on as text 0.0.4 as it is."""

    raw: bytes
    is_openmetrics: bool
    is_plain: bool
    families: dict[bytes, MetricFamily]

    def __iter__(self) -> Iterator[MetricFamily]:
        return iter(self.families.values())


def parse_labels(labels: bytes) -> list[tuple[bytes, bytes]]:
    """Give labels one by one, values still escaped."""
    return _PAIRS.findall(labels)


def unescape_label(value: bytes) -> str:
    """Give a label's value as text."""
    if b"\\" in value:
        value = _ESCAPE.sub(lambda found: b"\n" if found[1] == b"n" else found[1], value)
    return value.decode()


def escape_label(value: str) -> bytes:
    """Give text as a label's value."""
    return value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"').encode("utf-8", "replace")


def read_page(raw: bytes, *, is_openmetrics: bool | None = None) -> MetricsPage:
    """Read a page.

    Takes   is_openmetrics: as its content type said; None = it is, if it ends with `# EOF`
    Raises  InvalidPage
    """
    _check_text(raw)
    if is_openmetrics is None:
        is_openmetrics = raw[-8:].rstrip().endswith(b"# EOF")
    reading = _Reading(is_openmetrics)
    for first, chunk in _chunks(raw):
        reading.take(first, chunk)
    is_plain = not is_openmetrics and not reading.has_exemplars and reading.is_tidy
    seen = {
        family.name: family
        for family in reading.families.values()
        if family.samples or family.kind != "untyped"
    }
    return MetricsPage(raw, is_openmetrics, is_plain, seen)


def _check_text(raw: bytes) -> None:
    try:
        raw.decode()
    except UnicodeDecodeError as exc:
        number = raw.count(b"\n", 0, exc.start) + 1
        raise InvalidPage("is no UTF-8", number, raw.split(b"\n", number)[number - 1]) from None


def _chunks(raw: bytes) -> Iterator[tuple[int, bytes]]:
    """Give the page in pieces of whole lines, each with the number of its first."""
    begin, number = 0, 1
    while begin < len(raw):
        end = raw.rfind(b"\n", begin, begin + CHUNK_BYTES) + 1
        if not end:
            end = raw.find(b"\n", begin) + 1 or len(raw)
        chunk = raw[begin:end]
        yield number, chunk
        number += chunk.count(b"\n")
        begin = end


def _comments_of(chunk: bytes) -> list[bytes]:
    return [b"#" + rest.partition(b"\n")[0] for rest in (b"\n" + chunk).split(b"\n#")[1:]]


class _Reading:
    """What was read so far."""

    def __init__(self, is_openmetrics: bool) -> None:
        self.families: dict[bytes, MetricFamily] = {}
        self.has_exemplars = False
        self.is_tidy = True
        self._is_openmetrics = is_openmetrics
        self._owners: dict[bytes, MetricFamily] = {}
        self._creators: dict[bytes, MetricFamily] = {}

    def take(self, first: int, chunk: bytes) -> None:
        """Take whole lines. All of them at once by two searches; where that leaves a line over, one by one.

        A sample belongs to the family that a TYPE line gave its name to, wherever that stands: no order is asked for.
        """
        samples, comments = _SAMPLES.findall(chunk), _comments_of(chunk)
        lines = chunk.count(b"\n") + (not chunk.endswith(b"\n"))
        if len(samples) + len(comments) != lines:
            samples, comments = self._one_by_one(first, chunk)
        for comment in comments:
            self._comment(comment)
        if b" # {" in chunk:
            self.has_exemplars = self.has_exemplars or any(row[4] for row in samples)
        if self._is_openmetrics:
            samples = [(*row[:3], _milliseconds(row[3]), row[4]) if row[3] else row for row in samples]
        for name, rows in groupby(samples, _FIRST):
            self._samples_of(name).extend(map(_SAMPLE, rows))

    def _samples_of(self, name: bytes) -> list[MetricSample]:
        """Give the list that samples of a name go to."""
        if family := self._owners.get(name):
            return family.samples
        if family := self._creators.get(name):
            return family.created
        return self._new(name, "untyped").samples

    def _one_by_one(self, first: int, chunk: bytes) -> tuple[list[tuple[bytes, ...]], list[bytes]]:
        samples, comments = [], []
        for number, line in enumerate(chunk.split(b"\n"), first):
            if found := _SAMPLES.match(line):
                samples.append(found.groups(b""))
            elif line.lstrip().startswith(b"#"):
                comments.append(line.strip())
            elif line.strip():
                samples.append(_forgiven(number, line))
                self.is_tidy = False
        return samples, comments

    def _comment(self, line: bytes) -> None:
        """Take `# HELP name text`, `# TYPE name kind`, `# UNIT name unit`; every other comment means nothing."""
        words = line.split(None, 3)
        if len(words) < 3 or words[0] != b"#":
            return
        text = words[3] if len(words) == 4 else b""
        if words[1] == b"TYPE":
            self._new(words[2], text.decode().strip().lower() or "untyped")
        elif words[1] in {b"HELP", b"UNIT"}:
            family = self.families.get(words[2]) or self._put(words[2])
            if words[1] == b"UNIT":
                family.unit = text
            else:  # OpenMetrics escapes quotes here, the text format does not
                family.help = (
                    _ESCAPE.sub(lambda one: b'"' if one[1] == b'"' else one[0], text)
                    if self._is_openmetrics
                    else text
                )

    def _put(self, name: bytes) -> MetricFamily:
        family = self.families[name] = MetricFamily(name)
        return family

    def _new(self, name: bytes, kind: str) -> MetricFamily:
        """Give the family of a TYPE line, or of a sample without one; it owns the names that its kind has."""
        family = self.families.get(name) or self._put(name)
        kind = "untyped" if kind == "unknown" else kind
        if family.kind == "untyped":
            family.kind = kind
        for suffix in _SUFFIXES.get(kind, (b"",)):
            self._owners.setdefault(name + suffix, family)
        if kind == "counter" and self._is_openmetrics:
            family.name = name + b"_total"
        if self._is_openmetrics and kind in {"counter", "histogram", "summary"}:
            self._creators[name + b"_created"] = family
        return family


def _forgiven(number: int, line: bytes) -> tuple[bytes, ...]:
    """Read a line that is not written as it should be, and write it so. Raises InvalidPage."""
    found = _LOOSE.match(line)
    if found is None:
        raise InvalidPage("is no sample, no comment and not empty", number, line)
    name, labels, value, stamp, exemplar = found.groups(b"")
    rows: list[bytes] = []
    at = 0
    while at < len(labels):
        pair = _LOOSE_PAIR.match(labels, at)
        if pair is None:
            if rows and not labels[at:].strip(b", \t"):
                break
            raise InvalidPage("has labels that cannot be read", number, line)
        rows.append(
            pair[1]
            + b'="'
            + _ESCAPE.sub(lambda one: one[0] if one[1] in b'\\n"' else b"\\" + one[0], pair[2])
            + b'"'
        )
        at = pair.end()
        if at < len(labels):
            if labels[at : at + 1] != b",":
                raise InvalidPage("has labels that cannot be read", number, line)
            at += 1
    return name, b",".join(rows), value, stamp, exemplar


def _milliseconds(seconds: bytes) -> bytes:
    try:
        return b"%d" % round(float(seconds) * 1000)
    except (ValueError, OverflowError):
        return b""
