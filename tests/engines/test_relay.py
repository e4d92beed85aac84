"""A stream on its way through: whole events, the public name, the end; however the bytes are cut."""

import json

import pytest

from appliance.engines.upstream.relay import MAX_EVENT_BYTES, BrokenStream, StreamRelay
from tests.engines.upstream_answers import CUT, LLAMACPP, PARALLEL, SGLANG, VLLM


def chunk(text: str, finish: str | None = None, **more) -> str:
    return (
        "data: "
        + json.dumps(
            {
                "id": "1",
                "model": "up/m",
                "choices": [{"delta": {"content": text}, "finish_reason": finish}],
                **more,
            }
        )
        + "\n\n"
    )


STREAM = (
    ": hi\n\n"
    + chunk("a\nb")
    + chunk('"model":"up/m"')
    + chunk("ü", "stop")
    + chunk("", usage={"prompt_tokens": 3, "completion_tokens": 4})
    + "data: [DONE]\n\n"
).encode()


def texts(out: bytes) -> list[str]:
    events = [e for e in out.decode().split("\n\n") if e.startswith("data: {")]
    values = [json.loads(e[6:]) for e in events]
    assert {v["model"] for v in values} == {"public"}
    return [v["choices"][0]["delta"]["content"] for v in values]


@pytest.mark.parametrize("size", [*range(1, 40), 100, 10_000])
@pytest.mark.parametrize("ending", [b"\n", b"\r\n"])
def test_it_may_be_cut_anywhere(size: int, ending: bytes) -> None:
    data = STREAM.replace(b"\n", ending) if ending != b"\n" else STREAM
    relay, out = StreamRelay("public"), b""
    for i in range(0, len(data), size):
        piece = relay.feed(data[i : i + size])
        assert piece == b"" or piece.endswith(b"\n\n")
        out += piece
    assert texts(out) == ["a\nb", '"model":"up/m"', "ü", ""]
    assert relay.is_done
    assert relay.usage == {"prompt_tokens": 3, "completion_tokens": 4}


def test_other_spellings_and_missing_models_are_handled() -> None:
    relay = StreamRelay("public")
    out = relay.feed(
        b'data: {"model":"a","choices":[]}\n\ndata: {"model" : "b","choices":[]}\n\ndata:{"choices":[{}]}\n\n'
    )
    assert (
        out
        == b'data: {"model":"public","choices":[]}\n\ndata: {"model":"public","choices":[]}\n\ndata:{"choices":[{}]}\n\n'
    )


def test_an_error_event_is_found() -> None:
    relay = StreamRelay("public")
    relay.feed(chunk("a").encode())
    relay.feed(b'data: {"error": {"message": "died"}}\n\n')
    assert relay.error is not None
    assert relay.error.message == "died"


def test_an_event_that_is_not_json_is_refused() -> None:
    with pytest.raises(BrokenStream, match="an event is not JSON"):
        StreamRelay("public").feed(b"data: <html>\n\n")


def test_an_event_without_an_end_is_refused() -> None:
    relay = StreamRelay("public")
    relay.feed(b"x" * MAX_EVENT_BYTES)
    with pytest.raises(BrokenStream, match="longer than 16 MiB"):
        relay.feed(b"x")


@pytest.mark.parametrize(("last", "finished"), [(chunk("x"), False), (chunk("", "length"), True)])
def test_an_end_without_done_counts_only_after_a_finish_reason(last: str, finished: bool) -> None:
    relay = StreamRelay("public")
    relay.feed((chunk("a") + last).encode())
    assert relay.has_finished is finished
    assert not relay.is_done


def test_an_event_that_is_null_is_not_passed_on() -> None:
    """llama-server begins a stream of several prompts with one; official clients cannot read it."""
    relay = StreamRelay("public")
    assert relay.feed(b"data: null\n\n") == b""
    assert (
        relay.feed(b'data: {"model":"m","choices":[]}\n\ndata: null\n\n')
        == b'data: {"model":"public","choices":[]}\n\n'
    )
    assert relay.events == 1


def test_an_event_of_several_lines_becomes_one_line() -> None:
    relay = StreamRelay("public")
    event = b'data: {"model":"m","choices":[],\ndata: "usage":{"prompt_tokens":1}}\n\n'
    out = relay.feed(event)
    assert out == b'data: {"model":"public","choices":[], "usage":{"prompt_tokens":1}}\n\n'
    assert relay.usage == {"prompt_tokens": 1}


def test_what_arrives_after_done_is_dropped() -> None:
    relay = StreamRelay("public")
    relay.feed(chunk("a").encode() + b"data: [DONE]\n\n")
    assert relay.feed(chunk("b").encode()) == b""


def test_an_error_event_may_be_a_sentence() -> None:
    relay = StreamRelay("public")
    relay.feed(b'data: {"error": "died"}\n\n')
    assert relay.error is not None
    assert relay.error.message == "died"


def relay_all(*pieces: bytes, choices: int = 1) -> tuple[bytes, StreamRelay]:
    relay, out = StreamRelay("public", choices=choices), b""
    for piece in pieces:
        if relay.error is None and relay.broken is None:
            out += relay.feed(piece)
    return out + relay.end(), relay


FINISH = b'data: {"model":"m","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
USAGE = b'data: {"model":"m","choices":[],"usage":{"completion_tokens":4}}\n\n'
TEXT = chunk("Hi").encode()


@pytest.mark.parametrize(
    ("stream", "completion_tokens"),
    [
        (TEXT + FINISH, None),
        (TEXT + FINISH + USAGE, 4),
        (TEXT + FINISH + USAGE + b": bye\n\n", 4),
        (TEXT + FINISH + b"data: [DONE]\n", None),
        (TEXT + FINISH + b"data:  [DONE]\n\n", None),
        (TEXT + FINISH + b"data: [DONE]\n\n: bye\n\n", None),
        (TEXT + FINISH + b"data: [DONE]\n\n" + USAGE, 4),
        (TEXT + b"data: [DONE]\n\n", None),
        (TEXT + FINISH.rstrip(b"\n"), None),
        (TEXT + FINISH + USAGE[:-20], None),
    ],
)
def test_a_whole_stream_is_whole_however_packets_fall(stream: bytes, completion_tokens: int | None) -> None:
    whole, relay = relay_all(stream)
    assert (whole.count(b"[DONE]"), b'"Hi"' in whole, relay.is_done) == (1, True, True)
    for size in range(1, len(stream)):
        out, relay = relay_all(*[stream[at : at + size] for at in range(0, len(stream), size)])
        assert out.replace(b": bye\n\n", b"") == whole.replace(b": bye\n\n", b""), size
        assert relay.is_done
        assert (relay.usage or {}).get("completion_tokens") == completion_tokens


@pytest.mark.parametrize(
    ("stream", "choices"),
    [
        (TEXT, 1),
        (TEXT + USAGE, 1),
        (TEXT + FINISH[:-30], 1),
        (TEXT.replace(b'"finish_reason": null', b'"finish_reason": ""'), 1),
        (TEXT + FINISH, 2),
        (TEXT + FINISH + FINISH, 2),
    ],
)
def test_a_cut_stream_is_never_whole(stream: bytes, choices: int) -> None:
    for size in range(1, len(stream) + 1):
        out, relay = relay_all(
            *[stream[at : at + size] for at in range(0, len(stream), size)], choices=choices
        )
        assert not relay.is_done
        assert relay.broken is not None
        assert b"[DONE]" not in out


@pytest.mark.parametrize(
    "event",
    [
        b"data:\n\n",
        b"data: {}\n\n",
        b'data: {"type":"ping"}\n\n',
        b'data: {"model":"m","object":"ping"}\n\n',
        b'event: ping\ndata: {"type":"ping"}\n\n',
        b"id: 7\n\n",
        b"retry: 5\n\n",
        b'data: {"choices":null}\n\n',
    ],
)
def test_harmless_events_do_not_reach_the_client(event: bytes) -> None:
    stream = TEXT + event + TEXT + event + FINISH + b"data: [DONE]\n\n"
    expected, _ = relay_all(TEXT + TEXT + FINISH + b"data: [DONE]\n\n")
    assert relay_all(stream)[0] == expected
    assert relay_all(TEXT, event, TEXT, event, FINISH, b"data: [DONE]\n\n")[0] == expected


def test_ids_and_names_are_taken_out() -> None:
    """After an id, official clients take a heartbeat for an event."""
    out, _ = relay_all(b"id: 1\nevent: message\n: x\n" + FINISH)
    assert out == FINISH.replace(b'"m"', b'"public"') + b"data: [DONE]\n\n"


@pytest.mark.parametrize(
    "error",
    [
        b'data: {"error":{"message":"boom"}}\n\n',
        b'data: {"model":"m","error":{"message":"boom"}}\n\n',
        b'data: {"model":"m","error":"boom","choices":[{"delta":{},"finish_reason":"error"}]}\n\n',
        b'data: {"object":"error","message":"boom","model":"m"}\n\n',
        b'data: {"code":500,"reason":"X","message":"boom"}\n\n',
        b'data: {"detail":"boom"}\n\n',
        b'event: error\ndata: {"message":"boom"}\n\n',
        b"event: error\ndata: boom\n\n",
        b'error: {"message":"boom"}\n\n',
        b'{"error":{"message":"boom"}}\n',
        b'{"error":{"message":"boom"}}',
    ],
)
def test_an_error_keeps_the_text_before_it_and_ends_the_stream(error: bytes) -> None:
    for stream in (TEXT + error, TEXT + error + FINISH + b"data: [DONE]\n\n"):
        for size in range(1, len(stream) + 1):
            out, relay = relay_all(*[stream[at : at + size] for at in range(0, len(stream), size)])
            if relay.error is None:  # JSON without a blank line belongs to the next event
                assert error.endswith((b"}", b"}\n"))
                assert stream.endswith(b"[DONE]\n\n")
                continue
            assert relay.error.message == "boom"
            assert out == TEXT.replace(b"up/m", b"public").replace(b'"model": ', b'"model":')
            assert not relay.is_done


def test_text_before_an_invalid_event_is_not_lost() -> None:
    relay = StreamRelay("public")
    assert b'"Hi"' in relay.feed(TEXT + b"data: {oops\n\n")
    assert "an event is not JSON" in str(relay.broken)


def test_usage_without_choices_gets_empty_ones() -> None:
    out, relay = relay_all(FINISH + b'data: {"usage":{"completion_tokens":4}}\n\n')
    assert b'"choices":[],"model":"public"}' in out
    assert relay.usage == {"completion_tokens": 4}


@pytest.mark.parametrize("text", ['say "hi"', "back\\slash\\", "a\nb", "ü🎉", "[DONE]", '"error"', ""])
@pytest.mark.parametrize("together", [1, 2, 5])
def test_every_text_passes_the_learnt_form(text: str, together: int) -> None:
    events = [chunk(t).encode() for t in ["a", "b", text, "c", text, text]] + [FINISH]
    pieces = [b"".join(events[at : at + together]) for at in range(0, len(events), together)]
    out, relay = relay_all(*pieces)
    assert relay.events == 7
    found = [json.loads(event[6:]) for event in out.decode().split("\n\n")[:-2]]
    assert [event["choices"][0]["delta"].get("content") for event in found] == [
        "a",
        "b",
        text,
        "c",
        text,
        text,
        None,
    ]
    assert {event["model"] for event in found} == {"public"}


def test_invalid_utf8_is_replaced_in_the_learnt_form_too() -> None:
    bad = chunk("x").encode().replace(b'"x"', b'"\xff"')
    out, _ = relay_all(TEXT, TEXT, bad, bad + bad, FINISH)
    assert out.decode().count('"\ufffd"') == 3


def test_a_huge_model_field_costs_little() -> None:
    import tracemalloc

    event = b'data: {"model":"' + b"x" * 5_000_000 + b'","choices":[]}\n\n'
    tracemalloc.start()
    out = StreamRelay("public").feed(event)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert out == b'data: {"model":"public","choices":[]}\n\n'
    assert peak < 100_000_000


@pytest.mark.parametrize(
    ("data", "count"),
    [
        (
            VLLM,
            6,
        ),  # of its seven texts one is empty; the role, the finish_reason and the usage are no content
        (LLAMACPP, 6),
        (SGLANG, 10),  # reasoning, and three pieces of a tool call
        (PARALLEL, 4),
        (CUT, 2),
        ((chunk("") * 3 + chunk("a") + chunk("") * 3).encode(), 1),
        ((chunk("a") * 3 + chunk("") * 3 + chunk("b") * 2).encode(), 5),
        (b'data: {"model":"m","choices":[],"prompt_progress":{"total":9}}\n\n' * 2, 2),
    ],
)
@pytest.mark.parametrize("size", [*range(1, 60, 7), 200, 100_000])
def test_events_with_content_are_counted_however_they_arrive(data: bytes, count: int, size: int) -> None:
    relay = StreamRelay("public")
    for i in range(0, len(data), size):
        relay.feed(data[i : i + size])
    assert relay.content_events() == count
