"""A stream on its way through: whole events, the public name, the end; however the bytes are cut."""

import json

import pytest

from appliance.engines.upstream.relay import MAX_EVENT_BYTES, BrokenStream, StreamRelay


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
        b'data: {"model":"a","choices":[]}\n\ndata: {"model" : "b","choices":[]}\n\ndata:{"choices":[1]}\n\n'
    )
    assert (
        out
        == b'data: {"model":"public","choices":[]}\n\ndata: {"model":"public","choices":[]}\n\ndata:{"choices":[1]}\n\n'
    )


def test_an_error_event_is_found() -> None:
    relay = StreamRelay("public")
    relay.feed(chunk("a").encode())
    relay.feed(b'data: {"error": {"message": "died"}}\n\n')
    assert relay.error == {"message": "died"}


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


def test_usage_that_cannot_be_read_stays_in_the_stream() -> None:
    """An event may have several lines; its usage is for the counters only."""
    relay = StreamRelay("public")
    event = b'data: {"model":"m","choices":[],\ndata: "usage":{"prompt_tokens":1}}\n\n'
    assert b'"usage":{"prompt_tokens":1}' in relay.feed(event)
    assert relay.usage is None


def test_what_comes_after_the_last_word_is_dropped() -> None:
    relay = StreamRelay("public")
    relay.feed(chunk("a").encode() + b"data: [DONE]\n\n")
    assert relay.feed(chunk("b").encode()) == b""


def test_an_error_event_may_be_a_sentence() -> None:
    relay = StreamRelay("public")
    relay.feed(b'data: {"error": "died"}\n\n')
    assert relay.error == {"message": "died"}
