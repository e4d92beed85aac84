"""What varies from run to run, or is only words for people, made into placeholders: `<int>`, `<float>`, `<text>`, `<time>`, `<id>` …

A placeholder keeps the JSON type: null stays null, a whole number is `<int>`, any other number `<float>`. An empty text stays empty, since
that nothing is said is part of the shape.
"""

import json
import re
import socket
from typing import Any

from tests.golden.wire import Heard

# Sentences for people. They may be reworded at any time; codes, types, statuses and keys may not.
PROSE = {
    "message",
    "detail",
    "reason",
    "note",
    "remedy",
    "help",
    "error",
    "warnings",
    "error_message",
    "previous_error",
    "details_text",
    "last_error",
    "why",
    "description",
    "error_text",
    "upstream_error",
}
# Numbers and texts that differ from run to run, by the name of their key.
VARYING = re.compile(
    r"(.*_)?(ms|s|sec|seconds|at|ts|timestamp|time|duration|port|pid|uptime|modified|created|mb|gb|percent|percentage|since|expires|free|used|"
    r"updated|celsius|watts|driver|p50|p95|p99|avg|min|max|mean|rate)(_s|_ms|_sec|_mb|_gb)?"
)
NUMBERS_IN_BYTES = re.compile(
    r"(used|free|total|memory|estimate|average|rate|resident|available)_bytes(_s)?|total_bytes|vram_.*|size_vram|(.*_)?per_(second|minute)|last_used|size"
)
WORDS = {
    "rubbish": "<invalid_response>",
    "invalid_response": "<invalid_response>",
    "rested": "<circuit_open>",
    "circuit_open": "<circuit_open>",
}
RENAMED = re.compile(r"\b(" + "|".join(WORDS) + r")\b")
PATTERNS = [
    (re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:?\d\d)?"), "<time>"),
    (re.compile(r"\breq_[0-9a-f]+\b"), "req_<id>"),
    (
        re.compile(r"\b(chatcmpl|cmpl|resp|msg|rs|fc|ctc|item|job|dl|call)([-_])[0-9a-zA-Z]{12,}\b"),
        r"\1\2<id>",
    ),
    (re.compile(r"_\d{5}\.log\b"), "_<port>.log"),
    (re.compile(r"\b(127\.0\.0\.1|localhost|\[::1\]):\d{2,5}\b"), r"\1:<port>"),
    (re.compile(r"\binference-appliance/[\w.+-]+"), "inference-appliance/<version>"),
    (re.compile(r"\b(Python|aiohttp|grpc-python|grpcio)/[\w.+-]+"), r"\1/<version>"),
]
LONG_VECTOR = 32
LONG_TEXT = 1500

# Headers whose value says nothing but that they are there.
HEADER_VALUES = {
    "date": "<time>",
    "content-length": "<int>",
    "x-request-id": "<id>",
    "etag": "<id>",
    "retry-after": "<int>",
    "x-model-expected-in": "<float>",
    "x-model-load-progress": "<int>",
}
NUMBER = re.compile(r"-?\d+(\.\d+)?([eE][-+]?\d+)?")


class Normaliser:
    """Normalises. `known`: texts of this run (addresses, folders) with what stands for them."""

    def __init__(self, known: dict[str, str] | None = None) -> None:
        self.known = {socket.gethostname(): "<hostname>", **(known or {})}

    def text(self, text: str) -> str:
        """Replace what varies inside a text."""
        for found in sorted(self.known, key=len, reverse=True):
            text = text.replace(found, self.known[found])
        for pattern, placeholder in PATTERNS:
            text = pattern.sub(placeholder, text)
        text = RENAMED.sub(lambda match: WORDS[match[0]], text)
        return text if len(text) <= LONG_TEXT else f"{text[:80]}… <{len(text)} letters>"

    def value(self, value: Any, key: str = "") -> Any:
        """Replace what varies inside a JSON value."""
        if isinstance(value, dict):
            if key == "steps" and "outcome" in value:  # what they come to depends on who runs this and where
                value = {**value, "outcome": "done"}
            if "body" in value and not str(value.get("outcome", "status_")).startswith(
                "status_"
            ):  # an attempt: then it is a sentence of ours
                value = {**value, "body": "<text>"}
            return {self.text(name): self.value(one, name) for name, one in value.items()}
        if isinstance(value, list):
            if len(value) >= LONG_VECTOR and all(isinstance(one, float) for one in value):
                return f"<{len(value)} floats>"
            return [self.value(one, key) for one in value]
        if value is None or isinstance(value, bool):
            return value
        varies = VARYING.fullmatch(key) or NUMBERS_IN_BYTES.fullmatch(key)
        if isinstance(value, str):
            if key in PROSE:
                return "<text>" if value else ""
            if key == "modelfile":
                value = re.sub(r"(?m)^#.*$", "# <text>", value)
            if key == "engine":
                return re.sub(r"\(.*\)", "(<text>)", value)
            if key == "version":
                return "<version>"
            if varies and value:
                return "<time>" if not NUMBER.fullmatch(value) else "<digits>"
            if key in {"machine_id", "hostname", "job", "digest", "request_id"} and value:
                return "<id>"
            return self.text(value)
        if varies:
            return "<int>" if isinstance(value, int) else "<float>"
        return value

    # ---- answers

    def answer(self, heard: Heard) -> dict[str, Any]:
        """Give an answer as it is recorded."""
        found = {
            "status": f"{heard.version} {heard.status} {heard.reason}".strip(),
            "headers": self.headers(heard.fields),
            "body": self.body(heard.body, heard.header("content-type")),
        }
        if heard.status >= 400 and heard.header("content-type").startswith("text/plain"):
            found["body"] = "<text>"
        return found if heard.end == "complete" else {**found, "end": heard.end}

    def headers(self, fields: list[tuple[str, str]]) -> dict[str, Any]:
        """Give fields with their names as written; those of one name are a list."""
        found: dict[str, Any] = {}
        for name, value in fields:
            said = HEADER_VALUES.get(name.lower()) or self._field(name.lower(), value)
            found[name] = (
                said
                if name not in found
                else [*(found[name] if isinstance(found[name], list) else [found[name]]), said]
            )
        return found

    def _field(self, name: str, value: str) -> str:
        if name == "x-appliance-receipt":
            return "; ".join(self._receipt(part) for part in re.split(r"; (?=\w+=)", value))
        if name == "server-timing":
            return NUMBER.sub("<float>", value)
        return self.text(value)

    def _receipt(self, part: str) -> str:
        name, _, value = part.partition("=")
        if name in {"reason", "overflow"}:
            return f"{name}=<text>"
        return f"{name}={self.value(float(value), name) if VARYING.fullmatch(name) else self.text(value)}"

    def body(self, body: bytes, content_type: str) -> Any:
        """Give a body: JSON as a value, streams as lines, other texts as they are, "" for none."""
        kind = content_type.partition(";")[0].strip().lower()
        if not body:
            return ""
        if kind in {"text/event-stream", "application/x-ndjson"}:
            return [self.line(line) for line in body.decode().split("\n")]
        try:
            return self.value(json.loads(body))
        except ValueError:
            return self.text(body.decode(errors="replace"))

    def line(self, line: str) -> str:
        """Give one line of a stream; JSON in it keeps the order of its keys and its way of writing."""
        mark = next((mark for mark in ("data: ", "data:") if line.startswith(mark)), "")
        said = line[len(mark) :]
        try:
            value = json.loads(said)
        except ValueError:
            return self.text(line)
        if not isinstance(value, dict):
            return self.text(line)
        separators = (", ", ": ") if '": ' in said else (",", ":")
        return mark + json.dumps(self.value(value), separators=separators, ensure_ascii="\\u" in said)


# ---- metrics

SAMPLE = re.compile(r"([a-zA-Z_:][\w:]*)(?:\{(.*)\})? \S+")
LABEL = re.compile(r'(\w+)="(?:[^"\\]|\\.)*"')
ENDS = ("_bucket", "_sum", "_count", "_created", "_total", "_info")


def metrics_page(page: str, normaliser: Normaliser) -> dict[str, Any]:
    """Give the families of a page: name → type, help, names of labels. Values say nothing."""
    families: dict[str, dict[str, Any]] = {}
    for line in page.splitlines():
        if line.startswith(("# HELP ", "# TYPE ", "# UNIT ")):
            _, what, name, *rest = line.split(" ", 3)
            families.setdefault(name, {"labels": []})[what.lower()] = normaliser.text(rest[0] if rest else "")
        elif match := SAMPLE.match(line):
            name = match[1]
            owner = (
                name
                if name in families
                else next(
                    (
                        name.removesuffix(end)
                        for end in ENDS
                        if name.removesuffix(end) in families and name.endswith(end)
                    ),
                    name,
                )
            )
            family = families.setdefault(owner, {"labels": []})
            family["labels"] = sorted({*family["labels"], *LABEL.findall(match[2] or "")})
            if owner != name:
                family["samples"] = sorted({*family.get("samples", []), name})
    return families
