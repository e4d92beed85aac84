"""Newline-delimited JSON, one object per line: the framing of Ollama's streams.

NDJSON has no comments, and clients fail on an empty line. But every JSON reader skips spaces before an
object: HEARTBEAT is the beginning of the next line.
"""

from typing import Any

from appliance.base import jsons

CONTENT_TYPE = "application/x-ndjson"
HEARTBEAT = b" "


def json_line(value: dict[str, Any]) -> bytes:
    """Return one object as a line."""
    return jsons.dumps(value) + b"\n"
