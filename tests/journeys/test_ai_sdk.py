"""The AI SDK (npm) over the Responses API, as it comes: texts, streams, tools in steps, objects, errors.

It refers to the items of kept responses. On the demo engine, a hosted stand-in and a real llama-server.
"""

from typing import Any

from tests.fakes.hosted_api import CutStream, HostedApi, Reply, Status
from tests.journeys.llama_servers import Llama
from tests.journeys.node_clients import RunNode
from tests.journeys.running import Running, Start
from tests.journeys.test_real_llama import behind
from tests.tools.tiny_models import REPLY, REPLY_TOKENS

OBJECT = Reply('{"colour": "green"}')
CALL = Reply("I look.", calls=(("weather", {"city": "Paris"}),))


def step(text: str, reason: str = "stop", *cities: str) -> dict[str, Any]:
    """Return one step as the script tells it: with a call for each city, else with a text alone."""
    return {
        "calls": ["weather" for _ in cities],
        "cities": list(cities),
        "results": ["20 degrees" for _ in cities],
        "text": text,
        "reason": reason,
    }


async def test_the_ai_sdk_works_with_the_demo_engine(start: Start, node: RunNode) -> None:
    failing = ["demo: error 429", "demo: error 400", "demo: cut"]
    got = await node("ai_sdk", await start(), tool="demo: tool weather", object="x", failing=failing)
    hello = "[demo engine] You said: Hello"
    assert (got["text"]["text"], got["text"]["reason"]) == (hello, "stop")
    assert got["text"] == got["stream"] | {"model": got["text"]["model"]}
    steps = [
        step("", "tool-calls", "string"),
        step("[demo engine] The tool returned: 20 degrees"),
    ]
    assert got["steps"] == got["streamedSteps"] == steps
    assert got["object"] == got["streamedObject"] == {"colour": "red"}
    assert got["further"] == ["[demo engine] You said: And now?", "[demo engine] You said: More"]
    assert got["references"] == 1
    assert got["chat"] == hello
    assert (got["unknown"]["status"], got["unknown"]["retryable"]) == (404, False)
    for prompt, status, may_be_repeated in (("demo: error 429", 429, True), ("demo: error 400", 400, False)):
        whole, streamed = got["failures"][prompt]
        assert (whole["status"], whole["retryable"]) == (status, may_be_repeated)
        assert (
            streamed
            == whole["message"]
            == f"The demo engine answers with status {status}, as the prompt asked."
        )
    assert got["failures"]["demo: cut"] == [
        None,
        "The demo engine broke off its response, as the prompt asked.",
    ]


async def test_the_ai_sdk_works_with_a_hosted_api(relay: Running, hosted: HostedApi, node: RunNode) -> None:
    hosted.script(Reply("Hi."), Reply("Hi."), CALL, Reply("20."), CALL, Reply("20."), OBJECT, OBJECT)
    hosted.script(Reply("Two."), Reply("Three."), Reply("Chat."), Status(400), CutStream(after_events=3))
    got = await node("ai_sdk", relay, tool="How warm?", object="Which?", failing=["x"])
    assert [got[name]["text"] for name in ("text", "stream")] == ["Hi.", "Hi."]
    assert got["steps"] == got["streamedSteps"] == [step("I look.", "tool-calls", "string"), step("20.")]
    assert got["object"] == got["streamedObject"] == {"colour": "green"}
    assert got["further"] == ["Two.", "Three."]
    assert got["chat"] == "Chat."
    whole, streamed = got["failures"]["x"]
    assert (whole["status"], whole["message"]) == (400, "stand-in answers 400")
    assert "broke off" in streamed
    bodies = [record.body for record in hosted.records]
    assert [message["role"] for message in bodies[3]["messages"]] == ["user", "assistant", "tool"]
    assert bodies[3]["messages"][1]["tool_calls"][0]["id"] == bodies[3]["messages"][2]["tool_call_id"]
    assert bodies[6]["response_format"]["json_schema"]["schema"]["required"] == ["colour"]
    # What it refers to by an item's id, and what it continues by a response's, are in the prompt.
    assert [[message["content"] for message in body["messages"]] for body in bodies[8:10]] == [
        ["Hello", "Hi.", "And now?"],
        ["Hello", "Hi.", "More"],
    ]


async def test_the_ai_sdk_works_with_a_llama_server(start: Start, llama: Llama, node: RunNode) -> None:
    running = await start(**behind(await llama()))
    got = await node("ai_sdk", running, model="tiny", tool="x", object="x", toolChoice="required")
    assert got["text"] == {"text": REPLY, "reason": "stop", "tokens": REPLY_TOKENS, "model": "tiny"}
    assert got["stream"] == {"text": REPLY, "reason": "stop", "tokens": REPLY_TOKENS}
    called = step(f"{REPLY}\n\n", "tool-calls", "string")
    assert got["steps"] == got["streamedSteps"] == [called, called]
    assert got["object"]["colour"] in ("red", "green")
    assert got["streamedObject"]["colour"] in ("red", "green")
    assert got["further"] == [REPLY, REPLY]
    assert got["chat"] == REPLY
