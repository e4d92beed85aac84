"""The demo engine as a backend.

Shapes of its replies, trouble that a prompt provokes, shapes that it refuses.
"""

import asyncio
import base64
import json
import struct
from typing import Any

import pytest

from appliance.base import jsons
from appliance.base.clock import FakeClock
from appliance.base.errors import ApplianceError, Invalid, Kind, UpstreamFailed
from appliance.base.metrics.registry import Metrics
from appliance.engines.backends.demo import DemoBackend
from appliance.engines.outcome import Outcome
from appliance.engines.receipts import Receipt
from appliance.engines.types import BackendStatus, EngineReply, EngineRequest, Operation


class Scene:
    """The demo engine, and the last request to it."""

    def __init__(self) -> None:
        self.backend = DemoBackend("public", ("alias",), clock=FakeClock(), metrics=Metrics())
        self.slot = self.backend.take("only_one")
        self.receipt = Receipt("r1")

    async def ask(self, operation: Operation, *, stream: bool = False, **body: Any) -> EngineReply:
        self.receipt = Receipt("r1", public_model="public")
        request = EngineRequest(operation, body, None, "public", stream, self.receipt)
        self.slot = self.backend.take("only_one")
        return await self.backend.send(request, self.slot, budget_s=5.0)

    async def chat(self, text: str = "hi", **body: Any) -> EngineReply:
        return await self.ask(Operation.CHAT, messages=[{"role": "user", "content": text}], **body)


def value_of(reply: EngineReply) -> Any:
    assert reply.body is not None
    return jsons.loads(reply.body)


async def test_a_chat_is_echoed_and_counted() -> None:
    scene = Scene()
    value = value_of(await scene.chat())
    choice = value["choices"][0]
    assert (value["object"], value["model"], value["system_fingerprint"]) == (
        "chat.completion",
        "public",
        "demo-engine",
    )
    assert (choice["message"]["content"], choice["finish_reason"]) == ("[demo engine] You said: hi", "stop")
    assert (
        value["usage"]["total_tokens"]
        == value["usage"]["prompt_tokens"] + value["usage"]["completion_tokens"]
    )
    assert scene.receipt.completion_tokens == value["usage"]["completion_tokens"]
    assert [attempt.label for attempt in scene.receipt.attempts] == ["ok"]
    assert (scene.slot.attempt.outcome, scene.backend.in_flight) == (
        Outcome.OK,
        1,
    )  # the first slot is still taken


@pytest.mark.parametrize(
    ("prompt", "texts"),
    [
        ("a", ["a"]),
        (["a", "b"], ["a", "b"]),
        ([1, 2], ["1 2"]),
        ([[1, 2], [3]], ["1 2", "3"]),
    ],
)
async def test_completions_answer_every_prompt(prompt: Any, texts: list[str]) -> None:
    value = value_of(await Scene().ask(Operation.COMPLETION, prompt=prompt))
    assert [choice["text"] for choice in value["choices"]] == [
        f"[demo engine] You said: {text}" for text in texts
    ]


async def test_reasoning_and_tool_calls_are_in_the_message() -> None:
    tool = {"type": "function", "function": {"name": "weather", "parameters": {"properties": {"city": {}}}}}
    thinking = value_of(await Scene().chat("demo: think"))["choices"][0]["message"]
    assert thinking["reasoning_content"] == "[demo engine] thinking about: demo: think"
    choice = value_of(await Scene().chat(tools=[tool], tool_choice="required"))["choices"][0]
    assert (choice["finish_reason"], choice["message"]["content"]) == ("tool_calls", None)
    assert choice["message"]["tool_calls"] == [
        {
            "id": "call_demo_0_0",
            "type": "function",
            "function": {"name": "weather", "arguments": '{"city":"demo"}'},
        }
    ]


async def test_a_prompt_can_delay_the_reply() -> None:
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(Scene().chat("demo: slow 60"), 0.01)


async def test_n_gives_as_many_choices() -> None:
    value = value_of(await Scene().chat(n=3))
    assert [choice["index"] for choice in value["choices"]] == [0, 1, 2]


async def test_logprobs_come_when_asked_for() -> None:
    value = value_of(await Scene().chat(logprobs=True, top_logprobs=1))
    entry = value["choices"][0]["logprobs"]["content"][0]
    assert (entry["token"], len(entry["top_logprobs"])) == ("[demo", 1)


async def test_a_stream_holds_its_slot_until_it_ends() -> None:
    scene = Scene()
    reply = await scene.chat(stream=True, stream_options={"include_usage": True})
    assert reply.events is not None
    assert not scene.slot.is_released
    events = b"".join([piece async for piece in reply.events]).split(b"\n\n")
    chunks = [json.loads(event[6:]) for event in events if event.startswith(b"data: {")]
    text = "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks if chunk["choices"])
    assert (text, events[-2], "usage" in chunks[-1]) == ("[demo engine] You said: hi", b"data: [DONE]", True)
    assert scene.slot.attempt.outcome is Outcome.OK


async def test_a_long_stream_comes_in_several_pieces() -> None:
    reply = await Scene().chat("demo: long 2000", stream=True)
    assert reply.events is not None
    assert len([piece async for piece in reply.events]) > 3


async def test_a_prompt_can_cut_the_stream() -> None:
    scene = Scene()
    reply = await scene.chat("demo: cut", stream=True)
    assert reply.events is not None
    with pytest.raises(UpstreamFailed, match="broke off"):
        async for _ in reply.events:
            pass
    assert scene.slot.attempt.outcome is Outcome.CUT_OFF


@pytest.mark.parametrize(
    ("status", "kind", "retry_after_s"),
    [
        (400, Kind.INVALID, None),
        (401, Kind.UNAUTHENTICATED, None),
        (403, Kind.FORBIDDEN, None),
        (404, Kind.NOT_FOUND, None),
        (418, Kind.INVALID, None),
        (429, Kind.EXHAUSTED, 1.0),
        (500, Kind.UPSTREAM, None),
        (503, Kind.UNAVAILABLE, 1.0),
        (504, Kind.TIMEOUT, None),
    ],
)
async def test_a_prompt_can_ask_for_an_error(status: int, kind: Kind, retry_after_s: float | None) -> None:
    scene = Scene()
    with pytest.raises(ApplianceError, match=f"status {status}") as caught:
        await scene.chat(f"demo: error {status}")
    error = caught.value
    assert (error.kind, error.retry_after_s, error.details["status"]) == (kind, retry_after_s, status)
    assert (scene.receipt.attempts[0].label, scene.slot.attempt.outcome) == (
        f"status_{status}",
        Outcome.REFUSED,
    )


# ---- embeddings


@pytest.mark.parametrize(
    ("inputs", "count", "tokens"),
    [("word", 1, 1), (["a", "b c"], 2, 3), ([1, 2, 3], 1, 3), ([[1, 2], [3]], 2, 3), ([], 0, 0)],
)
async def test_embeddings_of_every_input(inputs: Any, count: int, tokens: int) -> None:
    scene = Scene()
    value = value_of(await scene.ask(Operation.EMBEDDING, input=inputs, dimensions=8))
    assert ([len(row["embedding"]) for row in value["data"]], scene.receipt.prompt_tokens) == (
        [8] * count,
        tokens,
    )


async def test_embeddings_as_base64_are_the_same_numbers() -> None:
    plain = value_of(await Scene().ask(Operation.EMBEDDING, input="word", dimensions=4))
    packed = value_of(
        await Scene().ask(Operation.EMBEDDING, input="word", dimensions=4, encoding_format="base64")
    )
    numbers = struct.unpack("<4f", base64.b64decode(packed["data"][0]["embedding"]))
    assert numbers == pytest.approx(plain["data"][0]["embedding"])


# ---- shapes that are refused


@pytest.mark.parametrize(
    ("operation", "body", "param", "message"),
    [
        (Operation.CHAT, {"messages": [], "n": 129}, "n", "at most 128"),
        (Operation.COMPLETION, {}, "prompt", "`prompt` must be"),
        (Operation.COMPLETION, {"prompt": []}, "prompt", "`prompt` must be"),
        (Operation.COMPLETION, {"prompt": ["a", 1]}, "prompt", "`prompt` must be"),
        (Operation.EMBEDDING, {}, "input", "`input` must be"),
        (Operation.EMBEDDING, {"input": [None]}, "input", "`input` must be"),
        (Operation.EMBEDDING, {"input": "a", "dimensions": 5000}, "dimensions", "1 to 4096"),
        (Operation.EMBEDDING, {"input": "a", "dimensions": "8"}, "dimensions", "1 to 4096"),
    ],
)
async def test_shapes_that_it_cannot_read(
    operation: Operation, body: dict[str, Any], param: str, message: str
) -> None:
    scene = Scene()
    with pytest.raises(Invalid, match=message) as caught:
        await scene.ask(operation, **body)
    assert (caught.value.param, scene.slot.attempt.outcome) == (param, Outcome.REFUSED)


async def test_it_serves_every_name_and_says_that_it_is_the_demo() -> None:
    backend = Scene().backend
    assert backend.find_model("anything") is backend.find_model("public") is not None
    state = backend.describe()
    assert (state.kind, state.is_up, state.models, backend.status(0.0)) == (
        "demo",
        True,
        ("public",),
        BackendStatus.READY,
    )


async def test_tokens_are_counted_as_replies_count_them() -> None:
    scene = Scene()
    await scene.chat("hello, world")
    messages = [{"role": "user", "content": "hello, world"}]
    assert await scene.backend.count_tokens("public", {"messages": messages}) == scene.receipt.prompt_tokens
