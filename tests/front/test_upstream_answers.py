"""Answers of upstreams, cut anywhere and mutated, through every dialect.

How packets fall never matters; whatever comes, the client gets content or an error, never an exception of ours.
"""

import asyncio
import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from appliance.base import jsons
from appliance.base.clock import FakeClock
from appliance.base.errors import ApplianceError
from appliance.base.inline import InlineRunner, Signal
from appliance.base.wire.response import UpstreamResponse
from appliance.engines.stream import GeneratedStream
from appliance.engines.upstream.attempt import AttemptFailed
from appliance.engines.upstream.pacing import make_chunks
from appliance.front.ollama.reply import ReplyFormat, StreamTranslator, from_openai_reply
from appliance.front.openai.responses_objects import new_response, output_items
from appliance.front.openai.responses_stream import ResponsesStream
from appliance.front.pipeline.sse import read_events
from tests.base.test_connection import Exchange
from tests.base.test_inline import in_callback
from tests.engines.test_exchange import Attempting, stream_of
from tests.engines.upstream_answers import ALL, BROKEN, WHOLE

Read = Callable[[list[bytes]], Any]


async def _chat(pieces: list[bytes]) -> Any:
    """The relay: the events that the client gets."""
    reply = await Attempting(stream_of(*pieces)).send()
    assert reply.events is not None
    out, error = b"", ""
    try:
        async for piece in reply.events:
            assert piece.endswith(b"\n\n")
            out += piece
    except ApplianceError as exc:
        error = exc.message
    finally:
        await reply.events.aclose()
    events = [event for event in out.split(b"\n\n") if event and not event.startswith(b":")]
    assert all(
        event == b"data: [DONE]" or event == b"data:[DONE]" or jsons.loads(event[6:])["choices"] is not None
        for event in events
    )
    assert bool(error) is not any(b"[DONE]" in event[:13] for event in events)
    return events, error


async def _gathered(pieces: list[bytes]) -> Any:
    reply = await Attempting(stream_of(*pieces), is_gathered=True).send()
    assert reply.body is not None
    return jsons.loads(reply.body)


async def _paced(pieces: list[bytes]) -> Any:
    return list(make_chunks(await _gathered(pieces), size=4, include_usage=True))


async def _whole_ollama(pieces: list[bytes]) -> Any:
    return from_openai_reply(await _gathered(pieces), ReplyFormat("m", is_chat=True), at_s=0, elapsed_s=0)


async def _whole_responses(pieces: list[bytes]) -> Any:
    items = output_items((await _gathered(pieces))["choices"][0]["message"])
    return [{name: value for name, value in item.items() if name != "id"} for item in items if item]


async def _ollama(pieces: list[bytes]) -> Any:
    reply = await Attempting(stream_of(*pieces)).send()
    assert reply.events is not None
    translator, parts = StreamTranslator(ReplyFormat("m", is_chat=True)), []
    try:
        async for event in read_events(reply.events):
            parts.append(translator.translate(event, at_s=0, elapsed_s=0))
        parts += translator.finish(at_s=0, elapsed_s=0)
    except ApplianceError as exc:
        parts.append({"error": exc.message})
    return [part for part in parts if part]


async def _responses(pieces: list[bytes]) -> Any:
    reply = await Attempting(stream_of(*pieces)).send()
    assert reply.events is not None
    stream = ResponsesStream(new_response({}, model="m", at_s=1), FakeClock(100))
    source = GeneratedStream(stream.pieces(reply.events), reply.events)
    out = b""
    try:
        async for piece in source:
            out += piece
    except ApplianceError as exc:
        out += stream.render_failure(exc)
    finally:
        await source.aclose()
    events = [jsons.loads(event.split(b"data: ", 1)[1]) for event in out.split(b"\n\n") if event]
    return [(event["type"], event.get("delta"), event.get("arguments")) for event in events]


DIALECTS = [_chat, _gathered, _paced, _whole_ollama, _whole_responses, _ollama, _responses]


async def read(dialect: Any, pieces: list[bytes]) -> Any:
    """Return what a client gets; a failure is its class and its words."""
    try:
        async with asyncio.timeout(5):
            return await dialect(pieces)
    except (AttemptFailed, ApplianceError) as exc:
        return type(exc).__name__, getattr(exc, "label", ""), getattr(exc, "note", "")


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("name", ALL)
async def test_how_packets_fall_never_matters(name: str, dialect: Any) -> None:
    stream = ALL[name]
    uncut = await read(dialect, [stream])
    assert isinstance(uncut, tuple) is (name in BROKEN and dialect not in (_chat, _ollama, _responses)) or (
        dialect in (_chat, _whole_ollama)
    )
    for at in range(1, len(stream)):
        assert await read(dialect, [stream[:at], stream[at:]]) == uncut, at
    chance = random.Random(name)
    for _ in range(20):
        cuts = sorted(chance.sample(range(len(stream)), chance.randrange(2, 40)))
        pieces = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True) if a < b]
        assert await read(dialect, pieces) == uncut
    for size in (1, 2, 3, 7, 64):
        assert await read(dialect, [stream[at : at + size] for at in range(0, len(stream), size)]) == uncut


@pytest.mark.parametrize("name", WHOLE)
async def test_a_cut_answer_never_passes_as_whole(name: str) -> None:
    """Up to the finish_reason, every beginning of a stream is an error; after it, the content is all there."""
    stream = WHOLE[name]
    whole, _ = await read(_chat, [stream])
    content = [event for event in whole if b'"delta"' in event]
    end = stream.rfind(b'"finish_reason"')
    for at in range(1, len(stream), 3):
        found = await read(_chat, [stream[:at]])
        if isinstance(found[0], str):
            continue  # failed before its first content
        events, error = found
        assert error or (at > end and [event for event in events if b'"delta"' in event] == content), at


# ---- passed on as it arrives, in the callbacks of a connection


class PushedWire:
    """A connection without a socket, on which the response arrives piece by piece."""

    def __init__(self) -> None:
        self.exchange = Exchange()

    async def send(self, target: Any, **sent: Any) -> UpstreamResponse:
        self.exchange.feed(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n")
        self.exchange.feed(b"Transfer-Encoding: chunked\r\n\r\n")
        return self.exchange.response


async def _pushed(pieces: list[bytes], chance: random.Random) -> Any:
    """The relay as a fast connection runs it, with a client that pauses at random: what `_chat` gives."""
    attempting, wire, loop = Attempting(stream_of()), PushedWire(), asyncio.get_running_loop()
    attempting.wire = wire  # type: ignore[assignment]
    out: list[bytes] = []
    pauses = chance.choice([0.0, 0.2, 1.0])

    def write(piece: bytes) -> bool:
        assert piece.endswith(b"\n\n")
        out.append(piece)
        return chance.random() >= pauses

    async def pass_on() -> str:
        reply = await attempting.send()
        assert reply.events is not None
        try:
            while not await reply.events.pass_pieces(write):
                read = Signal()
                loop.call_later(0, read.set)
                await read
        except ApplianceError as exc:
            return exc.message
        finally:
            await reply.events.aclose()
        return ""

    ended = asyncio.Event()
    runner = InlineRunner(pass_on(), ended.set, loop)
    await in_callback(runner.start)
    for piece in [*pieces, b""]:
        chunk = b"%x\r\n%b\r\n" % (len(piece), piece)
        await in_callback(lambda chunk=chunk: wire.exchange.feed(chunk))
    await ended.wait()
    error = runner.result()
    assert attempting.observer.seen.count("head") == 1
    events = [event for event in b"".join(out).split(b"\n\n") if event and not event.startswith(b":")]
    return events, error


@pytest.mark.parametrize("name", ALL)
async def test_what_is_passed_on_as_it_arrives_is_what_is_pulled(name: str) -> None:
    stream, chance = ALL[name], random.Random(name)
    pulled = await read(_chat, [stream])
    cuts = [[], list(range(1, len(stream), 3)), list(range(7, len(stream), 7))]
    cuts += [sorted(chance.sample(range(1, len(stream)), chance.randrange(1, 20))) for _ in range(40)]
    for at in cuts:
        pieces = [stream[a:b] for a, b in zip([0, *at], [*at, len(stream)], strict=True)]
        for _ in range(2):
            assert await read(lambda cut: _pushed(cut, chance), pieces) == pulled, at


@pytest.mark.parametrize("name", ALL)
async def test_a_client_that_leaves_while_it_is_passed_on_ends_it(name: str) -> None:
    """At every piece, reading or not: the connection is closed, and the attempt says that the client left."""
    stream = ALL[name]
    pieces = [stream[at : at + 50] for at in range(0, len(stream), 50)]
    loop = asyncio.get_running_loop()
    for is_reading in (True, False):
        for count in range(len(pieces)):
            attempting, wire = Attempting(stream_of()), PushedWire()
            attempting.wire = wire  # type: ignore[assignment]

            async def pass_on(attempting: Attempting = attempting, is_reading: bool = is_reading) -> None:
                reply = await attempting.send()
                assert reply.events is not None
                try:
                    while not await reply.events.pass_pieces(lambda _: is_reading):
                        await Signal()
                finally:
                    await reply.events.aclose()

            runner = InlineRunner(pass_on(), lambda: None, loop)
            await in_callback(runner.start)
            for piece in pieces[:count]:
                chunk = b"%x\r\n%b\r\n" % (len(piece), piece)
                await in_callback(lambda chunk=chunk, wire=wire: wire.exchange.feed(chunk))
            is_over = runner.is_done
            await in_callback(runner.cancel)
            for _ in range(5):
                await asyncio.sleep(0)
            assert runner.is_done
            assert is_over or isinstance(runner.error, asyncio.CancelledError)
            assert wire.exchange.transport.is_aborted or wire.exchange.is_kept
            assert len([seen for seen in attempting.observer.seen if seen not in {"head", "first"}]) <= 1
            if not is_over and "first" in attempting.observer.seen:
                assert attempting.observer.seen[-1] in {"client_left", "ok"}


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 10**10) | st.floats(allow_nan=False) | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["text", "type", "index", "id", "function", "name", "arguments", "message", "error"]
            ),
            inner,
            max_size=3,
        )
    ),
    max_leaves=6,
)


@st.composite
def mutated(draw: Any) -> list[bytes]:
    """Draw a stream with some bytes, lines or JSON values replaced, in random pieces."""
    stream = ALL[draw(st.sampled_from(sorted(ALL)))]
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(stream)))
        stream = stream[:at] + draw(st.binary(max_size=6)) + stream[at + draw(st.integers(0, 6)) :]
    events = stream.split(b"\n\n")
    for _ in range(draw(st.integers(0, 3))):
        number = draw(st.integers(0, len(events) - 1))
        events[number] = _replace_value(draw, events[number])
    stream = b"\n\n".join(events)
    cuts = sorted(draw(st.lists(st.integers(0, len(stream)), max_size=4)))
    return [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True) if a < b]


def _replace_value(draw: Any, event: bytes) -> bytes:
    try:
        value = jsons.loads(event.removeprefix(b"data: "))
    except jsons.InvalidJson:
        return event
    at = value
    while isinstance(at, dict | list) and at:
        keys = list(at) if isinstance(at, dict) else range(len(at))
        key = draw(st.sampled_from(keys))
        if not isinstance(at[key], dict | list) or not at[key] or draw(st.booleans()):
            at[key] = draw(VALUES)
            break
        at = at[key]
    return b"data: " + jsons.dumps(value)


@pytest.mark.parametrize("dialect", DIALECTS)
@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(pieces=mutated())
def test_whatever_comes_is_content_or_an_error(dialect: Any, pieces: list[bytes]) -> None:
    found = asyncio.run(read(dialect, pieces))
    assert asyncio.run(read(dialect, [b"".join(pieces)])) == found


@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(pieces=mutated(), seed=st.integers(0, 10))
def test_whatever_comes_is_passed_on_as_it_is_pulled(pieces: list[bytes], seed: int) -> None:
    pushed = asyncio.run(read(lambda cut: _pushed(cut, random.Random(seed)), pieces))
    assert pushed == asyncio.run(read(_chat, pieces))
