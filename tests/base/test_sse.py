"""Server-sent events, parsed from bytes that are cut anywhere."""

from typing import Any

import pytest

from appliance.base.errors import UpstreamFailed
from appliance.base.sse import SseReader


@pytest.mark.parametrize(
    ("stream", "events"),
    [
        (b'data: {"a": 1}\n\n', [{"a": 1}]),
        (b'data:{"a": 1}\r\n\r\n', [{"a": 1}]),
        (b'data: {"a":\ndata: 1}\n\n', [{"a": 1}]),
        (b": heartbeat\n\nid: 7\n\n", []),
        (b'id: 7\nevent: message\ndata: {"a": 1}\n\n', [{"a": 1}]),
        (b'data: null\n\ndata: {"a": 1}\n\n', [{"a": 1}]),
        (b"data: [DONE]\n\n", [None]),
    ],
)
def test_events_are_complete_wherever_the_bytes_are_cut(stream: bytes, events: list[Any]) -> None:
    for at in range(len(stream)):
        reader = SseReader()
        assert reader.feed(stream[:at]) + reader.feed(stream[at:]) + reader.end() == events


@pytest.mark.parametrize(
    ("rest", "events"), [(b'data: {"a": 1}', [{"a": 1}]), (b'data: {"a"', []), (b"  \n", []), (b"", [])]
)
def test_end_returns_an_event_without_its_blank_line(rest: bytes, events: list[Any]) -> None:
    reader = SseReader()
    assert reader.feed(rest) + reader.end() == events


@pytest.mark.parametrize(
    ("event", "text"),
    [
        (b"data: {oops\n\n", "An event of the response is not JSON: "),
        (b"data: [1]\n\n", "An event of the response is not a JSON object."),
    ],
)
def test_invalid_event_is_an_upstream_failure(event: bytes, text: str) -> None:
    with pytest.raises(UpstreamFailed, match=text) as caught:
        SseReader().feed(event)
    assert caught.value.code == "upstream_rubbish"
