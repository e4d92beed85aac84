"""One piece into a stream: nothing lost, cut where people see characters."""

import pytest

from appliance.base import jsons
from appliance.engines.upstream.pacing import cut_text, make_chunks, pace_response

FAMILY = "👩‍👩‍👧‍👦"


@pytest.mark.parametrize(
    ("text", "size", "pieces"),
    [
        ("abcdef", 4, ["abcd", "ef"]),
        ("", 4, []),
        ("a\nb\n\nc", 2, ["a\n", "b\n", "\nc"]),
        (FAMILY + "x" + FAMILY, 1, [FAMILY, "x", FAMILY]),
        ("e\u0301e\u0301", 1, ["e\u0301", "e\u0301"]),
        ("🇪🇺🇩🇪", 1, ["🇪🇺", "🇩🇪"]),
        ("a\r\nb", 2, ["a\r\n", "b"]),
    ],
)
def test_text_is_cut_at_characters_as_people_see_them(text: str, size: int, pieces: list[str]) -> None:
    assert cut_text(text, size) == pieces
    assert "".join(pieces) == text


REPLY = {
    "id": "1",
    "object": "chat.completion",
    "created": 5,
    "model": "m",
    "system_fingerprint": "fp",
    "usage": {"total_tokens": 9},
    "choices": [
        {
            "index": 0,
            "finish_reason": "stop",
            "message": {
                "role": "assistant",
                "content": "Hello\nworld",
                "reasoning_content": "hm hm",
                "annotations": [1],
            },
            "logprobs": {"content": [{"token": "Hello"}, {"token": "\n"}, {"token": "world"}]},
        },
        {
            "index": 1,
            "finish_reason": "tool_calls",
            "message": {
                "role": "assistant",
                "content": None,
                "tool_calls": [
                    {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}},
                    {"id": "c2", "type": "function", "function": {"name": "g", "arguments": ""}},
                ],
            },
        },
    ],
}


def test_everything_of_the_reply_is_in_the_stream() -> None:
    chunks = list(make_chunks(REPLY, size=4, include_usage=True))
    assert all(
        c["object"] == "chat.completion.chunk" and c["id"] == "1" and c["system_fingerprint"] == "fp"
        for c in chunks
    )
    assert chunks[-1] == {
        **{k: v for k, v in chunks[0].items() if k != "choices"},
        "choices": [],
        "usage": {"total_tokens": 9},
    }
    deltas = [c["choices"][0] for c in chunks[:-1]]
    assert "".join(d["delta"].get("content") or "" for d in deltas if d["index"] == 0) == "Hello\nworld"
    assert "".join(d["delta"].get("reasoning_content") or "" for d in deltas) == "hm hm"
    assert [t["token"] for d in deltas for t in (d["logprobs"] or {}).get("content", [])] == [
        "Hello",
        "\n",
        "world",
    ]
    assert [d["finish_reason"] for d in deltas if d["finish_reason"]] == ["stop", "tool_calls"]
    calls = [t for d in deltas for t in d["delta"].get("tool_calls") or []]
    assert [(c["index"], c.get("id"), c["function"]["arguments"]) for c in calls] == [
        (0, "c1", ""),
        (0, None, '{"a":1}'),
        (1, "c2", ""),
    ]
    assert deltas[0]["delta"]["annotations"] == [1]


def test_usage_is_left_out_unless_asked_for() -> None:
    assert all("usage" not in c for c in make_chunks(REPLY, size=4, include_usage=False))


async def test_it_ends_with_done() -> None:
    events = [e async for e in pace_response(REPLY, size=100, delay_ms=0, include_usage=False)]
    assert events[-1] == b"data: [DONE]\n\n"
    assert all(jsons.loads(e[6:]) for e in events[:-1])


def test_a_text_completion_is_cut_too() -> None:
    reply = {
        "object": "text_completion",
        "choices": [
            {"index": 0, "text": "abcde", "finish_reason": "length", "logprobs": {"tokens": ["abcde"]}}
        ],
    }
    chunks = list(make_chunks(reply, size=4, include_usage=False))
    assert [chunk["choices"][0] for chunk in chunks] == [
        {"index": 0, "text": "abcd", "logprobs": {"tokens": ["abcde"]}, "finish_reason": None},
        {"index": 0, "text": "e", "logprobs": None, "finish_reason": None},
        {"index": 0, "text": "", "logprobs": None, "finish_reason": "length"},
    ]
    assert {chunk["object"] for chunk in chunks} == {"text_completion"}


async def test_there_is_a_pause_between_two_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    monkeypatch.setattr("appliance.engines.upstream.pacing.asyncio.sleep", sleep)
    pieces = [piece async for piece in pace_response(REPLY, size=100, delay_ms=30, include_usage=False)]
    assert pauses == [0.03] * (len(pieces) - 2)  # none before the first one, none before [DONE]
