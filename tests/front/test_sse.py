"""Event streams are parsed wherever they are split; an incomplete stream is a failure."""

from contextlib import aclosing
from typing import Any

import pytest

from appliance.base.errors import UpstreamFailed
from appliance.base.sse import SseReader
from appliance.engines.stream import Stream
from appliance.front.pipeline.sse import read_events

STREAM = (
    b': hi\n\ndata: {"a":"x\\ny"}\n\nid: 7\nevent: message\ndata:{"b":"\xf0\x9f\x8e\x89"}\n\n'
    b'data: {"c":\ndata: 3}\n\ndata: [DONE]\n\n'
)
EVENTS = [{"a": "x\ny"}, {"b": "🎉"}, {"c": 3}, None]


class Pieces(Stream):
    """A source that records whether it was closed."""

    def __init__(self, *pieces: bytes) -> None:
        self._pieces = iter(pieces)
        self.is_closed = False

    async def __anext__(self) -> bytes:
        for piece in self._pieces:
            return piece
        raise StopAsyncIteration

    async def aclose(self) -> None:
        self.is_closed = True


async def read(source: Stream) -> list[dict[str, Any]]:
    return [event async for event in read_events(source)]


@pytest.mark.parametrize("stream", [STREAM, STREAM.replace(b"\n", b"\r\n")], ids=["LF", "CRLF"])
def test_events_are_whole_wherever_the_bytes_are_split(stream: bytes) -> None:
    for size in range(1, len(stream) + 1):
        reader = SseReader()
        found = [event for at in range(0, len(stream), size) for event in reader.feed(stream[at : at + size])]
        assert found == EVENTS, size


@pytest.mark.parametrize("event", [b"data: {nope}\n\n", b"data: [1]\n\n", b'data: "text"\n\n'])
def test_an_event_that_is_not_an_object_is_refused(event: bytes) -> None:
    with pytest.raises(UpstreamFailed) as caught:
        SseReader().feed(event)
    assert caught.value.code == "upstream_rubbish"


async def test_events_end_with_done_and_the_source_is_closed() -> None:
    source = Pieces(STREAM, b'data: {"after": "the end"}\n\n')
    assert await read(source) == EVENTS[:-1]
    assert source.is_closed


async def test_a_missing_blank_line_after_done_is_accepted() -> None:
    assert await read(Pieces(b'data: {"a": 1}\n\n', b"data: [DONE]\n")) == [{"a": 1}]


@pytest.mark.parametrize(
    "pieces",
    [[], [b'data: {"a": 1}\n\n'], [b'data: {"a": 1}\n\n', b'data: {"b":'], [b": only a comment\n\n"]],
)
async def test_a_stream_without_done_is_a_failure(pieces: list[bytes]) -> None:
    source = Pieces(*pieces)
    with pytest.raises(UpstreamFailed, match="The response broke off before it was complete") as caught:
        await read(source)
    assert caught.value.code == "upstream_cut_off"
    assert source.is_closed


@pytest.mark.parametrize(
    "event", [b'{"error":{"message":"no luck"}}', b'{"error":"no luck"}', b'{"error":"no luck","choices":[]}']
)
async def test_an_error_event_is_raised_with_its_message(event: bytes) -> None:
    with pytest.raises(UpstreamFailed, match="no luck"):
        await read(Pieces(b"data: " + event + b"\n\n", b"data: [DONE]\n\n"))


@pytest.mark.parametrize("event", [b'{"error":{"type":"x"}}', b'{"error":{"message":null}}'])
async def test_an_error_event_without_a_message_gets_one(event: bytes) -> None:
    with pytest.raises(UpstreamFailed, match="The response ended with an error") as caught:
        await read(Pieces(b"data: " + event + b"\n\n"))
    assert caught.value.code == "upstream_error_event"


async def test_leaving_early_closes_the_source() -> None:
    source = Pieces(STREAM)
    async with aclosing(read_events(source)) as events:  # type: ignore[type-var]
        assert await anext(events) == EVENTS[0]
    assert source.is_closed


def test_an_event_that_is_null_is_none() -> None:
    assert SseReader().feed(b'data: null\n\ndata: {"a":1}\n\ndata:null\n\n') == [{"a": 1}]
