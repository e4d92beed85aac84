"""Newline-delimited JSON: one object a line. The framing of Ollama's streams.

NDJSON knows no comments, and clients stumble over a line that is empty. What every JSON reader passes over is space before an object:
HEARTBEAT is the beginning of the next line.
"""

from typing import Any

from appliance.base import jsons

CONTENT_TYPE = "application/x-ndjson"
HEARTBEAT = b" "


def line(value: dict[str, Any]) -> bytes:
    """Render one object as a line."""
    return jsons.dumps(value) + b"\n"
