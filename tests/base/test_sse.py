"""Server-sent events, parsed from bytes that are cut anywhere."""

from typing import Any

import pytest

from appliance.base.errors import UpstreamFailed
from appliance.base.sse import MAX_EVENT_BYTES, EventBuffer, InvalidEvent, SseReader


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
        (b"data: {oops\n\n", "The response is invalid: an event is not JSON "),
        (b"data: [1]\n\n", "The response is invalid: an event is not a JSON object."),
    ],
)
def test_invalid_event_is_an_upstream_failure(event: bytes, text: str) -> None:
    with pytest.raises(UpstreamFailed, match=text) as caught:
        SseReader().feed(event)
    assert caught.value.code == "upstream_rubbish"


def read(*pieces: bytes) -> list[Any]:
    reader = SseReader()
    found = [event for piece in pieces for event in reader.feed(piece)]
    return found + reader.end()


@pytest.mark.parametrize(
    ("stream", "events"),
    [
        (b'\xef\xbb\xbfdata: {"a": 1}\n\n', [{"a": 1}]),  # a byte order mark
        (b'data: {"a": 1}\r\rdata: {"b": 2}\r\r', [{"a": 1}, {"b": 2}]),  # CR alone
        (b'data: {"a": 1}\r\n\r\ndata: {"b": 2}\n\r\n', [{"a": 1}, {"b": 2}]),  # mixed
        (b"data:\n\ndata\n\ndata: \n\n", []),  # empty data
        (b'data: {"a":"\xff"}\n\n', [{"a": "\ufffd"}]),  # invalid UTF-8
        (b'\n\n\ndata: {"a": 1}\n\n\n\n', [{"a": 1}]),  # more blank lines
        (b'id: 1\nretry: 5\nunknown: x\n: c\ndata: {"a": 1}\n\n', [{"a": 1}]),
        (b"data:  [DONE]\n\n", [None]),
        (b"data: [DONE]\n", [None]),
        (b"data: [DONE]", [None]),
        (b'event: error\ndata: {"message": "boom"}\n\n', [{"error": {"message": "boom"}}]),
        (b'event: error\ndata: {"error": "boom"}\n\n', [{"error": "boom"}]),
        (b"event: error\ndata: boom\n\n", [{"error": "boom"}]),
        (b"event: error\n\n", [{"error": "unknown error"}]),
        (b'error: {"message": "boom"}\n\n', [{"error": {"message": "boom"}}]),  # early llama-servers
        (b'{"error": "boom"}\n', [{"error": "boom"}]),  # JSON alone
        (b'{"choices": []}\n\n{oops\n\n', []),
    ],
)
def test_the_standard_holds_wherever_the_bytes_are_cut(stream: bytes, events: list[Any]) -> None:
    assert read(stream) == events
    for at in range(len(stream)):
        assert read(stream[:at], stream[at:]) == events, at
    assert read(*[stream[at : at + 1] for at in range(len(stream))]) == events


def test_an_endless_event_is_refused_in_linear_time() -> None:
    buffer = EventBuffer()
    piece = b"x" * 1024
    for _ in range(MAX_EVENT_BYTES // 1024):
        assert buffer.feed(piece) == b""
    with pytest.raises(InvalidEvent, match="an event is longer than 16 MiB"):
        buffer.feed(piece)
    assert buffer.end() == b""


def test_events_before_an_invalid_one_are_returned_first() -> None:
    for end in (lambda reader: reader.feed(b""), SseReader.end):
        reader = SseReader()
        assert reader.feed(b'data: {"a": 1}\n\ndata: {oops\n\n') == [{"a": 1}]
        with pytest.raises(UpstreamFailed, match="an event is not JSON"):
            end(reader)
