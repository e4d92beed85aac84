"""The field `model` of a form (multipart/form-data), as requests with audio and images have it. No I/O."""

import re
from dataclasses import dataclass

MAX_FIELD_HEAD_BYTES = 8192
MAX_MODEL_BYTES = 1024
_BOUNDARY = re.compile(r'multipart/form-data\s*;(?:.*;)?\s*boundary=(?:"([^"]{1,70})"|([^\s;"]{1,70}))', re.I)
_IS_MODEL = re.compile(rb'content-disposition:\s*form-data\s*;\s*name="?model"?\s*(?:\r\n|\Z)', re.I)


@dataclass(frozen=True, slots=True)
class FormModel:
    """The model that a form names.

    Attributes:
        name: "" = the field is empty, or is none that can be read.
        start, end: Where its bytes are.
    """

    name: str
    start: int
    end: int


def boundary_of(content_type: str) -> bytes:
    """Return what separates the fields of a form; empty = the body is no form."""
    found = _BOUNDARY.match(content_type.strip())
    return (found[1] or found[2]).encode("latin-1", "replace") if found else b""


def find_model(head: bytes, boundary: bytes) -> FormModel | None:
    """Find the field `model` in the first part of a body; None = it does not have it completely.

    Source:
        RFC 7578 and RFC 2046, 5.1.1: each field begins after a line with `--` and the boundary.
    """
    line = b"--" + boundary + b"\r\n"
    at = 0 if head.startswith(line) else head.find(b"\r\n" + line) + 2
    while at >= 2 or head.startswith(line, at):
        begins = at + len(line)
        ends = head.find(b"\r\n\r\n", begins, begins + MAX_FIELD_HEAD_BYTES)
        if ends < 0:
            return None
        value = ends + 4
        after = head.find(b"\r\n--" + boundary, value)
        if after < 0:
            return None
        if any(_IS_MODEL.match(row) for row in head[begins:ends].split(b"\r\n")):
            raw = head[value:after]
            name = raw.decode("utf-8", "replace") if len(raw) <= MAX_MODEL_BYTES else ""
            return FormModel(name, value, after)
        at = after + 2
        if not head.startswith(line, at):
            return None
    return None
