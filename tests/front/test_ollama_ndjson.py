"""NDJSON: one object per line, whatever its text contains."""

from appliance.front.ollama.ndjson import json_line


def test_a_line_is_one_object_whatever_is_in_its_text() -> None:
    assert json_line({"text": "a\nb 🎉"}) == '{"text":"a\\nb 🎉"}\n'.encode()
