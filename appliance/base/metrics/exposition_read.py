"""Metrics pages, parsed: Prometheus' text format 0.0.4 and OpenMetrics 1.0 into families of samples. Pure.

Why not prometheus-client's parser: a page of 5 MB takes it seconds (`python -m bench.normalise`), it gives up
without naming the line, and it renames counters. The tests compare this parser with it. Bytes stay as they
arrived, and labels are split only on demand: both formats write them alike. What no server may send (an
unknown escape, blanks, a comma at the end of the labels) is put right, or refused with its line.

Rendering: exposition_write.py.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter
from typing import NamedTuple

CHUNK_BYTES = 64 * 1024  # parsed at once: a regular expression blocks all threads while it runs
MAX_SHOWN_CHARACTERS = 200  # characters of a bad line that an error shows

_NAME = rb"[a-zA-Z_:][a-zA-Z0-9_:]*+"
_VALUE = (
    rb"[+-]?\d++(?:\.\d*+)?(?:[eE][+-]?\d++)?|[+-]?\.\d++(?:[eE][+-]?\d++)?"
    rb"|[+-]?[Ii]nf(?:inity)?|[+-]?[Nn]a[Nn]"
)
_STRING = rb'"[^"\\\n]*+(?:\\[\\n"][^"\\\n]*+)*+"'
_PAIR = rb"[a-zA-Z_][a-zA-Z0-9_]*+=" + _STRING
_EXEMPLAR = rb"(?: # (\{[^\n]*))?"
_LABELS = rb"(?:" + _PAIR + rb"(?:," + _PAIR + rb")*+)?+"
_LINE = (
    rb"^(" + _NAME + rb")(?:\{(" + _LABELS + rb")\})?+ "
    rb"(" + _VALUE + rb")(?: ([+-]?[0-9.eE+-]++))?" + _EXEMPLAR + rb"$"
)
_SAMPLES = re.compile(_LINE, re.MULTILINE)
# The same with what is tolerated: blanks and tabs anywhere, a comma after the last label, CR, any escape.
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
    """The page is not a metrics page.

    Args:
        why: Continues "line N …".
        number: Of the line, from 1.
        line: As it arrived; at most MAX_SHOWN_CHARACTERS characters of it are shown.
    """

    def __init__(self, why: str, number: int, line: bytes) -> None:
        shown = line.decode("utf-8", "backslashreplace")
        is_short = len(shown) <= MAX_SHOWN_CHARACTERS
        self.number = number
        self.line = shown if is_short else shown[:MAX_SHOWN_CHARACTERS] + "…"
        super().__init__(f"line {number} {why}: {self.line}")


class MetricSample(NamedTuple):
    """One line.

    Attributes:
        name: Of the sample.
        labels: What is between the braces.
        value: As it arrived.
        stamp: Milliseconds since 1970, or b"".
        exemplar: `{…} value [seconds]`, or b"".
    """

    name: bytes
    labels: bytes
    value: bytes
    stamp: bytes = b""
    exemplar: bytes = b""


_SAMPLE = MetricSample._make


@dataclass(slots=True)
class MetricFamily:
    """One metric.

    Attributes:
        name: As in the text format's TYPE line; a counter's with `_total`, if its samples have it.
        kind: counter, gauge, histogram, summary, untyped; OpenMetrics' info, stateset, gaugehistogram.
        help: As on the page, escaped.
        samples: May be empty: engines announce metrics before anything has happened to them.
        created: OpenMetrics' `_created` samples of it.
        unit: OpenMetrics' unit, or b"".
    """

    name: bytes
    kind: str = "untyped"
    help: bytes = b""
    samples: list[MetricSample] = field(default_factory=list)
    created: list[MetricSample] = field(default_factory=list)
    unit: bytes = b""


def make_gauge(name: str, text: str, value: float) -> MetricFamily:
    """Build a gauge of one value without labels."""
    full = name.encode()
    return MetricFamily(full, "gauge", text.encode(), [MetricSample(full, b"", b"%.10g" % value)])


@dataclass(slots=True)
class MetricsPage:
    """A parsed page.

    Attributes:
        raw: What was parsed.
        is_openmetrics: Its format.
        is_plain: `raw` can be passed on as text 0.0.4, unchanged.
        families: By name.
    """

    raw: bytes
    is_openmetrics: bool
    is_plain: bool
    families: dict[bytes, MetricFamily]

    def __iter__(self) -> Iterator[MetricFamily]:
        return iter(self.families.values())


def parse_labels(labels: bytes) -> list[tuple[bytes, bytes]]:
    """Split labels into (name, value) pairs, values still escaped."""
    return _PAIRS.findall(labels)


def unescape_label(value: bytes) -> str:
    """Return a label's value as text."""
    if b"\\" in value:
        value = _ESCAPE.sub(lambda found: b"\n" if found[1] == b"n" else found[1], value)
    return value.decode()


def escape_label(value: str) -> bytes:
    """Return text as a label's value."""
    return value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"').encode("utf-8", "replace")


def read_page(raw: bytes, *, is_openmetrics: bool | None = None) -> MetricsPage:
    """Parse a page.

    Args:
        raw: The page.
        is_openmetrics: By its content type; None = it is, if it ends with `# EOF`.

    Raises:
        InvalidPage: With the first line that is not valid.
    """
    _check_text(raw)
    if is_openmetrics is None:
        is_openmetrics = raw[-8:].rstrip().endswith(b"# EOF")
    parser = _Parser(is_openmetrics)
    for first, chunk in _chunks(raw):
        parser.take(first, chunk)
    is_plain = not is_openmetrics and not parser.has_exemplars and parser.is_tidy
    seen = {
        family.name: family
        for family in parser.families.values()
        if family.samples or family.kind != "untyped"
    }
    return MetricsPage(raw, is_openmetrics, is_plain, seen)


def _check_text(raw: bytes) -> None:
    try:
        raw.decode()
    except UnicodeDecodeError as exc:
        number = raw.count(b"\n", 0, exc.start) + 1
        raise InvalidPage("is not UTF-8", number, raw.split(b"\n", number)[number - 1]) from None


def _chunks(raw: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the page in chunks of whole lines, each with the number of its first."""
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


class _Parser:
    """What was parsed so far."""

    def __init__(self, is_openmetrics: bool) -> None:
        self.families: dict[bytes, MetricFamily] = {}
        self.has_exemplars = False
        self.is_tidy = True
        self._is_openmetrics = is_openmetrics
        self._owners: dict[bytes, MetricFamily] = {}
        self._creators: dict[bytes, MetricFamily] = {}

    def take(self, first: int, chunk: bytes) -> None:
        """Parse whole lines: all at once by two searches, or one by one if that leaves a line over.

        A sample belongs to the family whose TYPE line has its name, wherever that line is.
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
        """Return the list for samples of a name."""
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
                samples.append(_repair_line(number, line))
                self.is_tidy = False
        return samples, comments

    def _comment(self, line: bytes) -> None:
        """Parse `# HELP name text`, `# TYPE name kind` and `# UNIT name unit`; ignore other comments."""
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
        """Return the family of a TYPE line, or of a sample without one; it owns the names of its kind."""
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


def _repair_line(number: int, line: bytes) -> tuple[bytes, ...]:
    """Parse a line that breaks the format, and put it right; raise InvalidPage if that is impossible."""
    found = _LOOSE.match(line)
    if found is None:
        raise InvalidPage("is neither a sample nor a comment nor empty", number, line)
    name, labels, value, stamp, exemplar = found.groups(b"")
    rows: list[bytes] = []
    at = 0
    while at < len(labels):
        pair = _LOOSE_PAIR.match(labels, at)
        if pair is None:
            if rows and not labels[at:].strip(b", \t"):
                break
            raise InvalidPage("has labels that are not valid", number, line)
        value_text = _ESCAPE.sub(lambda one: one[0] if one[1] in b'\\n"' else b"\\" + one[0], pair[2])
        rows.append(pair[1] + b'="' + value_text + b'"')
        at = pair.end()
        if at < len(labels):
            if labels[at : at + 1] != b",":
                raise InvalidPage("has labels that are not valid", number, line)
            at += 1
    return name, b",".join(rows), value, stamp, exemplar


def _milliseconds(seconds: bytes) -> bytes:
    try:
        return b"%d" % round(float(seconds) * 1000)
    except (ValueError, OverflowError):
        return b""
